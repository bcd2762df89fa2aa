"""Rules across a recipe's groups: settings that do not go together, or of which one would do nothing.

Rules within one group stand in its class, rules of one trick in its `check`. Each takes a `Recipe`, whose module
imports this one.
"""

from typing import Any

from fb3.recipe.decision import METHODS, methods_for
from fb3.recipe.estimator import KEEPS_ESSAYS, OF_LABELS, OF_NUMBERS
from fb3.recipe.metric import TwoLevelF1Settings
from fb3.recipe.model import ModelSettings
from fb3.recipe.task import COMPARISONS, LabelsSettings
from fb3.recipe.training import AdamWSettings, CosineScheduleSettings

_OF_NUMBERS, _OF_ORDER = {"mcrmse", "rmse", "mae"}, {"pearson", "spearman"}
_OF_LABELS = {"log_loss", "balanced_accuracy", "macro_f1", "micro_f1", "f1_mean"}
_OF_LABELS |= {"map_at_k", "map_at_5", "map_at_10", "map_at_25"}
TARGET_KEYS = {"kind", "minimum", "maximum", "classes"}  # settings of a task that say what it predicts, not how
_OTHER_KIND = {True: "regression", False: "classification or multilabel"}


def tricks_fit(recipe: Any) -> None:
    kinds = [trick.kind for trick in recipe.tricks]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"tricks: {kind} stands {kinds.count(kind)} times; give it once")
    for trick in recipe.tricks:
        rivals = [other.kind for other in recipe.tricks if other.alone_in == trick.alone_in]
        if trick.alone_in and len(rivals) > 1:
            raise ValueError(f"tricks: {rivals} both {trick.alone_in}; give one")
    for trick in recipe.tricks:
        trick.check(recipe)


def target_tokens_are_there(recipe: Any) -> None:
    for name, model in (("model", recipe.model), ("model.stitch", recipe.model.stitch)):
        if model and model.pooling.kind == "target_tokens" and recipe.data.text.prompt != "tokens":
            raise ValueError(
                f"{name}.pooling.kind=target_tokens reads the targets' tokens; set data.text.prompt=tokens"
            )


def mix_joins_whole_essays(recipe: Any) -> None:
    if not (recipe.data.augment and recipe.data.augment.mix):
        return
    if recipe.train.batch_size == 1:
        raise ValueError(
            "data.augment.mix joins essays of a batch, and train.batch_size=1 has one; raise it or leave mix out"
        )
    if recipe.data.text.statistics:
        raise ValueError("data.text.statistics describe whole essays; leave them or data.augment.mix out")


def unlabelled_essays_are_one_text(recipe: Any) -> None:
    if recipe.task.uda and recipe.data.text.parts:
        raise ValueError("task.uda.augment changes one text; leave uda or data.text.parts out, or take text.template")


def second_encoder_fits(recipe: Any) -> None:
    stitch = recipe.model.stitch
    if stitch and recipe.data.augment:
        raise ValueError("data.augment changes the first encoder's tokens only; leave it or model.stitch out")
    if stitch and recipe.task.uda:
        raise ValueError("task.uda.augment changes the first encoder's tokens only; leave uda or model.stitch out")
    if stitch and stitch.backbone == "scratch":
        raise ValueError("model.stitch.backbone: only the first encoder can be built from scratch; give a folder")


def frozen_encoders_stay_as_they_are(recipe: Any) -> None:
    model = recipe.model
    if not (model.stitch and model.stitch.frozen == "both"):
        return
    on_frozen = [trick.kind for trick in recipe.tricks if trick.on_encoder]
    if on_frozen or model.mixout or model.reinit_layers:
        what = f"tricks: {on_frozen[0]}" if on_frozen else "model.mixout or reinit_layers"
        raise ValueError(f"{what} acts on an encoder that model.stitch.frozen=both keeps as it is; drop one")
    idle = {
        "model.freeze_embeddings": model.freeze_embeddings,
        "model.freeze_layers": model.freeze_layers,
        "optimizer.embeddings_rate": recipe.optimizer.embeddings_rate,
    }
    for name, value in idle.items():
        if value:
            raise ValueError(f"{name} does nothing with model.stitch.frozen=both; leave it out")


def embeddings_rate_has_embeddings(recipe: Any) -> None:
    if recipe.optimizer.embeddings_rate is not None and recipe.model.freeze_embeddings:
        raise ValueError("optimizer.embeddings_rate does nothing with model.freeze_embeddings; drop one of the two")


def losses_suit_the_batches(recipe: Any) -> None:
    if recipe.task.of_batches() and recipe.train.accumulation > 1:
        raise ValueError(
            f"task: {recipe.task.of_batches()[0]} does not add up over parts of a batch; set train.accumulation=1, or "
            "take mse"
        )
    comparisons = [loss for loss in recipe.task.losses() if loss in COMPARISONS]
    if comparisons and recipe.train.batch_size == 1:
        raise ValueError(
            f"task: {comparisons[0]} compares the essays of a batch, and train.batch_size=1 has one; raise it or "
            f"drop {comparisons[0]}"
        )


def weights_reach_each_essay(recipe: Any) -> None:
    if recipe.data.weight_column and recipe.task.of_batches():
        raise ValueError(
            f"data.weight_column weighs each essay's loss, and task: {recipe.task.of_batches()[0]} is one of the whole "
            "batch; take mse, or leave the weights out"
        )


def units_fit_the_columns(recipe: Any) -> None:
    columns = len(recipe.data.target_columns)
    for name in ("location", "scale"):
        numbers = getattr(recipe.task, name, None)
        if numbers is not None and len(numbers) != columns:
            raise ValueError(
                f"task.{name} holds {len(numbers)} numbers for {columns} target columns; give one for each"
            )


def r_drop_has_dropout(recipe: Any) -> None:
    model = recipe.model
    dropouts = (model.dropout, model.attention_dropout, model.layer_drop, model.mixout)
    if recipe.task.r_drop and not any(dropouts) and model.head.kind == "linear":
        raise ValueError("task.r_drop does nothing without dropout: both passes would be equal; set model.dropout")


def learned_weights_have_gradients(recipe: Any) -> None:
    if recipe.task.weighting == "fixed":
        return
    if recipe.task.weighed(len(recipe.data.target_columns)) == 1:
        raise ValueError("task.weighting: one column and one loss leave nothing to weigh; give terms or take fixed")
    for trick in recipe.tricks:
        if trick.drops_gradients():
            raise ValueError(
                f"tricks: {trick.kind} drops the gradients of some passes, from which task.weighting=uncertainty "
                "would learn; take fixed, fgm, or awp with form: two_pass"
            )


def folds_have_columns_to_split_by(recipe: Any) -> None:
    data, folds = recipe.data, recipe.folds
    if folds.group_column in (data.id_column, *data.target_columns):
        what = "each id once" if folds.group_column == data.id_column else "a target, which the folds should share"
        raise ValueError(
            f"folds.group_column={folds.group_column}: holds {what}; name a column of groups, such as a prompt"
        )
    if data.id_column in (folds.stratify_columns or ()):
        raise ValueError(f"folds.stratify_columns: {data.id_column!r} holds each id once; leave it out")
    if folds.stratify == "label_sets" and len(folds.stratify_columns or data.target_columns) == 1:
        raise ValueError("folds.stratify=label_sets combines columns, and there is one; take labels")


def decision_suits_the_task(recipe: Any) -> None:
    fitting = {"none", *(METHODS[name].kind for name in methods_for(recipe.task.kind))}
    if recipe.decision and recipe.decision.kind not in fitting:
        raise ValueError(
            f"decision.kind={recipe.decision.kind} does not suit task.kind={recipe.task.kind}; take one of "
            f"{', '.join(sorted(fitting))}"
        )


def metric_suits_the_task(recipe: Any) -> None:
    kind, metric = recipe.task.kind, str(recipe.metric)
    labels = isinstance(recipe.task, LabelsSettings)
    if isinstance(recipe.metric, TwoLevelF1Settings):
        if kind != "classification":
            raise ValueError(f"metric={metric} compares classes, and task.kind={kind} has none; take another of them")
        recipe.metric.parents_of(recipe.task.classes or ())
    unfit = {"classification": _OF_NUMBERS | _OF_ORDER, "multilabel": _OF_NUMBERS}.get(kind, _OF_LABELS)
    if metric in unfit:
        compares, mend = ("numbers", "metric=log_loss or another of labels") if labels else ("labels", "metric=rmse")
        raise ValueError(
            f"metric={metric} compares {compares}, and task.kind={kind} predicts "
            f"{'probabilities' if labels else 'numbers'}; set {mend}, or task.kind={_OTHER_KIND[labels]}"
        )


def labels_stand_in_one_column(recipe: Any) -> None:
    if recipe.task.kind != "classification":
        return
    data, classes = recipe.data, recipe.task.classes or ()
    if len(data.target_columns) > 1:
        raise ValueError(
            f"task.kind=classification: data.target_columns names {len(data.target_columns)} columns, and one holds "
            "the labels; name it alone, or take task.kind=multilabel where each column is 0 or 1"
        )
    if taken := [name for name in classes if name in {data.id_column, "fold"} or name.startswith("true_")]:
        raise ValueError(
            f"task.classes: {taken[0]!r} is the name of another column of oof.csv, where each class has one (the ids, "
            "fold, and true_...); rename this label in train.csv, and in the submission again"
        )


def sampling_has_classes(recipe: Any) -> None:
    if recipe.train.sampling and not isinstance(recipe.task, LabelsSettings):
        raise ValueError(
            f"train.sampling={recipe.train.sampling} draws essays by their label, and task.kind={recipe.task.kind} has "
            "numbers; leave it out, or take task.kind=classification"
        )


def pseudo_labels_suit_the_loss(recipe: Any) -> None:
    pseudo = recipe.pseudo
    if not pseudo:
        return
    if pseudo.essay_weight() != 1.0 and recipe.task.of_batches():
        raise ValueError(
            f"pseudo.weight={pseudo.essay_weight():g} weighs each essay's loss, and task: "
            f"{recipe.task.of_batches()[0]} is one of the whole batch; set pseudo.weight=1, or take mse"
        )


def frames_stand_beside_one_text(recipe: Any) -> None:
    if recipe.optimizer.image_rate and not recipe.data.image_encoder:
        raise ValueError("optimizer.image_rate: there is no image encoder to train; name it in data.frames.encoder")
    if not recipe.data.frames:
        if recipe.model.frames.kind != "single_stream":  # the default, which does nothing without frames
            raise ValueError(f"model.frames.kind={recipe.model.frames.kind}: say in data.frames where the frames are")
        return
    if recipe.model.stitch:
        raise ValueError("model.stitch: frames stand beside one encoder's text; leave it or data.frames out")
    if recipe.data.augment and recipe.data.augment.mix:
        raise ValueError("data.augment.mix joins the texts of two items, and not their frames; leave one of them out")
    if recipe.estimator:
        return
    kind = recipe.model.pooling.kind
    if recipe.model.frames.kind == "single_stream" and kind in ("target_tokens", "token_weighted", "cnn"):
        raise ValueError(f"model.pooling.kind={kind} reads the places of a text, where frames stand too; take mean")


def objectives_on_frames_have_them(recipe: Any) -> None:
    if not (kinds := [each.kind for each in (recipe.pretrain.objectives if recipe.pretrain else ()) if each.of_frames]):
        return
    if not recipe.data.frames:
        raise ValueError(
            f"pretrain.objectives: {kinds[0]} reads frames; say in data.frames where they are, drop it, or "
            "take a recipe of texts alone"
        )
    if recipe.model.frames.kind != "single_stream":
        raise ValueError(
            f"pretrain.objectives: {kinds[0]} wants frames and text in one encoder; set "
            "model.frames.kind=single_stream, or drop it"
        )


def estimator_suits_the_task(recipe: Any) -> None:
    estimator, task = recipe.estimator, recipe.task
    if not estimator:
        return
    if task.kind in ("binned", "ordinal"):
        raise ValueError(f"task.kind={task.kind} says how an encoder learns numbers; take task.kind=regression")
    labels = isinstance(task, LabelsSettings)
    if estimator.kind in (OF_NUMBERS if labels else OF_LABELS):
        what, mend = ("numbers", "logistic, lightgbm or knn") if labels else ("labels", "svr, ridge, lightgbm or knn")
        raise ValueError(
            f"estimator.kind={estimator.kind} predicts {what}, and task.kind={task.kind} has "
            f"{'labels' if labels else 'numbers'}; take {mend}"
        )
    if any(feature.kind == "frames" for feature in estimator.features) != bool(recipe.data.frames):
        raise ValueError("estimator.features: kind frames and data.frames go together; give both, or leave both out")
    if not estimator.features and not recipe.data.text.statistics:
        raise ValueError("estimator.features: there is none; give some, or set data.text.statistics=true")
    if estimator.kind in KEEPS_ESSAYS and any(feature.kind == "tfidf" for feature in estimator.features):
        raise ValueError(
            f"estimator.kind={estimator.kind} keeps the features of training essays, and tfidf has too many of them; "
            "take ridge, logistic or lightgbm"
        )


def estimator_leaves_no_setting_idle(recipe: Any) -> None:
    """Refuses settings of a fine-tuning; a recipe cannot tell defaults that were given from those that were not."""
    if not recipe.estimator:
        return
    task, data = recipe.task, recipe.data
    of_task = {f"task.{name}": getattr(task, name) for name in type(task).model_fields if name not in TARGET_KEYS}
    defaults = {f"task.{name}": field.get_default() for name, field in type(task).model_fields.items()}
    values = {
        "model": recipe.model,
        "optimizer": recipe.optimizer,
        "schedule": recipe.schedule,
        "tricks": recipe.tricks,
        "pseudo": recipe.pseudo,
    }
    values |= {"data.augment": data.augment, "data.weight_column": data.weight_column, **of_task}
    defaults |= {"model": ModelSettings(), "optimizer": AdamWSettings(), "schedule": CosineScheduleSettings()}
    defaults |= {"tricks": (), "pseudo": None, "data.augment": None, "data.weight_column": None}
    if idle := [name for name, value in values.items() if value != defaults[name]]:
        raise ValueError(f"{idle[0]} does nothing with an estimator on fixed features; leave it out, or the estimator")


# The first broken rule raises a ValueError that names the keys and the mend.
RULES = (
    frames_stand_beside_one_text,
    objectives_on_frames_have_them,
    tricks_fit,
    target_tokens_are_there,
    mix_joins_whole_essays,
    unlabelled_essays_are_one_text,
    second_encoder_fits,
    frozen_encoders_stay_as_they_are,
    embeddings_rate_has_embeddings,
    losses_suit_the_batches,
    weights_reach_each_essay,
    units_fit_the_columns,
    r_drop_has_dropout,
    learned_weights_have_gradients,
    folds_have_columns_to_split_by,
    decision_suits_the_task,
    labels_stand_in_one_column,
    metric_suits_the_task,
    sampling_has_classes,
    pseudo_labels_suit_the_loss,
    estimator_suits_the_task,
    estimator_leaves_no_setting_idle,
)
