"""The recipe book: each piece in a real run of a tiny encoder, alone and with others; what does nothing is refused."""

import gc
import sys
from collections.abc import Iterator
from typing import get_args

import pandas as pd
import pytest

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.data import TextSettings
from fb3.recipe.model import ModelSettings
from fb3.recipe.settings import kinds
from fb3.recipe.task import LossKind
from tests.conftest import ROOT
from tests.training.book import SMALL_RUN, Book, offered, prepare, rows, used

sys.path.insert(0, str(ROOT / "benchmarks"))
from ablation import UNIONS

LOSSES = [kind for kind in get_args(LossKind) if kind != "smooth_l1"]
# Overrides by name. "a/b" is b on top of a, and must differ from a; every other piece must differ from the plain run.
# A kind has a row here only where it does too little by its defaults, wants another piece, or has several forms; all
# others follow by their defaults.
SPECIAL = {
    "pgd": ["tricks=[{kind: pgd, steps: 2}]"],
    "awp": ["tricks=[{kind: awp, from_epoch: 0, epsilon: 0.02}]"],
    "awp_first": ["tricks=[{kind: awp, from_epoch: 0, form: perturb_first, epsilon: 0.02}]"],
    "awp_score": ["tricks=[{kind: awp, from_epoch: 0, from_score: 1.5, epsilon: 0.02}]"],
    "noise": ["tricks=[{kind: noise, scale: 0.2}]"],
    "ema": ["tricks=[{kind: ema, decay: 0.5}]"],
    "ema_late": ["tricks=[{kind: ema, decay: 0.5, start: 0.4}]"],
    "ema_teach": ["tricks=[{kind: ema, decay: 0.5, teach: 0.4}]"],
    "swa": ["tricks=[{kind: swa, start: 0.0, every_steps: 1}]"],
    "lookahead": ["tricks=[{kind: lookahead, steps: 2}]"],
    "pull_to_start": ["tricks=[{kind: pull_to_start, strength: 0.3}]"],
    "gradual_unfreeze": ["tricks=[{kind: gradual_unfreeze, until: 0.5}]"],
    "soup_uniform": ["train.soup={kind: uniform, top: 2}"],
    "soup_greedy": ["train.soup={kind: greedy, top: 3}", "train.evaluate_every_steps=2"],
    "accumulation": ["train.accumulation=2"],
    "bf16": ["train.precision=bf16"],
    # --- model ---
    "dropout": ["model.dropout=0.2"],
    "attention_dropout": ["model.attention_dropout=0.2"],
    "layer_drop": ["model.layer_drop=0.5"],
    "mixout": ["model.mixout=0.5"],
    "reinit_layers": ["model.reinit_layers=1"],
    "freeze_embeddings": ["model.freeze_embeddings=true"],
    "freeze_layers": ["model.freeze_layers=1"],
    "bert": ["model.backbone=SECOND"],
    "bert/pooler": ["model.pooling.kind=pooler"],
    "stitch": ["model.stitch={backbone: SECOND, frozen: second, pooling: {kind: cnn, width: 8}}"],
    "stitch_trained": ["model.stitch={backbone: SECOND, frozen: none}"],
    "stitch_frozen": ["model.stitch={backbone: SECOND, frozen: both, pooling: {kind: token_weighted}}"],
    # --- optimizer and schedule ---
    "bias_correction": ["optimizer.bias_correction=false"],
    "weight_decay": ["optimizer.weight_decay=1.0"],
    "layer_decay": ["optimizer.layer_decay=0.5"],
    "layer_decay/thirds": ["optimizer.decay_by=thirds"],
    "embeddings_rate": ["optimizer.embeddings_rate=1.0e-4"],
    "clip": ["optimizer.clip=0.1"],
    "cosine_restarts": ["schedule={kind: cosine_restarts, cycles: 2}"],
    "warmup_steps": ["schedule.warmup_steps=2"],
    "warmup_share": ["schedule.warmup_share=0.5"],
    "floor": ["schedule.floor=0.5"],
    # --- task ---
    **{loss: [f"task.loss={loss}"] for loss in LOSSES},
    "mse/smooth_l1": ["task.terms=[{kind: smooth_l1, weight: 3.0}]"],
    "pearson_term": ["task.terms=[{kind: pearson, weight: 0.3}]"],
    "terms": [f"task.terms=[{', '.join(f'{{kind: {loss}, weight: 0.5}}' for loss in LOSSES if loss != 'rank')}]"],
    "end_weight": ["task.terms=[{kind: rank, weight: 0.0, end_weight: 0.5}]"],
    "uncertainty": ["task.weighting=uncertainty"],
    "two_losses": ["task.terms=[{kind: mse}]"],
    "two_losses/uncertainty": ["task.weighting=uncertainty"],
    "dropout/r_drop": ["task.r_drop={alpha: 3.0}"],
    "binned/smoothing": ["task.smoothing=0.1"],
    "binned/focal": ["task.focal=2.0"],
    "binned/squeeze": ["task.squeeze=0.1"],
    "binned/uncertainty": ["task.weighting=uncertainty"],
    "binned/dropout": ["model.dropout=0.2"],
    "binned/dropout/r_drop": ["task.r_drop={alpha: 3.0}"],
    "ordinal": ["task={kind: ordinal, step: 1.0}"],
    "ordinal/squeeze": ["task.squeeze=0.1"],
    "ordinal/uncertainty": ["task.weighting=uncertainty"],
    "ordinal/dropout": ["model.dropout=0.2"],
    "ordinal/dropout/r_drop": ["task.r_drop={alpha: 3.0}"],
    "standardise": ["task.standardise=true"],
    "standardise/huber": ["task.loss=huber"],
    "classification": ["task={kind: classification}", "data.target_columns=[level]", "metric=log_loss"],
    "classification/balanced_weights": ["task.class_weights={kind: balanced, most: 3.0}"],
    "classification/power_weights": ["task.class_weights={kind: power}"],
    "classification/effective_weights": ["task.class_weights={kind: effective, beta: 0.9}"],
    "classification/smoothing": ["task.smoothing=0.1"],
    "classification/focal": ["task.focal=2.0"],
    "classification/poly": ["task.poly=1.0"],
    "classification/squeeze": ["task.squeeze=0.1"],
    "classification/balanced": ["train.sampling=balanced"],
    "classification/sqrt": ["train.sampling=sqrt"],
    "classification/below": ["train.sampling={20: 3}"],
    "classification/dropout": ["model.dropout=0.2"],
    "classification/dropout/r_drop": ["task.r_drop={alpha: 3.0}"],
    "multilabel": [
        "task={kind: multilabel}",
        "data.target_columns=[good_grammar, good_syntax, good_cohesion]",
        "metric=log_loss",
    ],
    "multilabel/balanced_weights": ["task.class_weights={kind: balanced}"],
    "multilabel/smoothing": ["task.smoothing=0.1"],
    "multilabel/focal": ["task.focal=2.0"],
    "multilabel/poly": ["task.poly=-1.0"],
    "multilabel/balanced": ["train.sampling=balanced"],
    "multilabel/uncertainty": ["task.weighting=uncertainty"],
    "multilabel/dropout": ["model.dropout=0.2"],
    "multilabel/dropout/r_drop": ["task.r_drop={alpha: 3.0}"],
    # --- data ---
    "weight_column": ["data.weight_column=importance"],
    "weight_column/standard_error": ["data.weight_form=standard_error"],
    "new_tokens": ["data.text.new_tokens=3"],
    "tail": ["data.truncation=tail"],
    "head_tail": ["data.truncation=head_tail"],
    "paragraphs": ["data.truncation=paragraphs"],
    "windows": ["data.windows={length: 32}"],
    "windows/stride": ["data.windows.stride=12"],
    "windows/pool_max": ["data.windows.pool=max"],
    "windows/pool_attention": ["data.windows.pool=attention"],
    "newlines": ["data.text.newlines=true"],
    "bert/capitals": ["data.text.capitals=true"],
    "repair": ["data.text.repair=true"],
    "statistics": ["data.text.statistics=true"],
    "parts": ["data.text.parts=[{column: topic, share: 0.2}, {column: full_text, share: 0.8}]"],
    "template": ["data.text.template='On {topic}: {full_text}'"],
    "names": ["data.text.prompt=names"],
    "tokens": ["data.text.prompt=tokens"],
    "tokens/target_tokens": ["model.pooling.kind=target_tokens"],
    **{key: [f"data.augment.{key}=0.3"] for key in ("shuffle", "typos", "mix", "mask", "delete", "swap", "cut")},
    "synonyms": ["data.augment.synonyms={file: SYNONYMS, share: 0.5}"],
}
SMALL = {"layers": 2, "width": 8, "samples": 3}
# No row shows these, by the start of the name, and why.
EXEMPT = {
    "Recipe.metric": "chooses among evaluations; tests/training/test_run.py trains by another one",
    "FileMetricSettings": "chooses among evaluations too",
    "TwoLevelF1Settings": "chooses among evaluations too",
    "PlainDecisionSettings": "changes no weight; tests/targets/test_decisions.py",
    "CutPointsSettings": "changes no weight; tests/targets/test_decisions.py",
    "PseudoSettings": "wants a folder of labels; tests/training/test_pseudo.py trains each use",
    "FilesSettings": "names files; tests/data/test_joins.py trains with others",
    "JoinSettings": "names files; tests/data/test_joins.py trains with others",
    **{
        f"{kind}Settings": "is read by pretraining alone; tests/pretraining trains it"
        for kind in ("Masking", "Mlm", "Simcse", "Rtd", "Order", "Mfm", "Itm", "Itc", "Pretraining")
    },
    **{
        f"{kind}Settings": "fits an estimator, and trains no encoder; tests/training/test_estimators.py fits each"
        for kind in ("Svr", "Ridge", "Logistic", "Lightgbm", "Knn", "Embeddings", "Tfidf", "FramesFeature", "Estimator")
    },
    **{
        f"{kind}Settings": "reads frames beside texts; tests/training/test_frames.py trains each"
        for kind in ("Frames", "SingleStream", "DualStream")
    },
    "BaseOptimizerSettings.image_rate": "wants pictures; tests/training/test_image_training.py trains by it",
    "TextPartSettings": "the row parts has both",
    "ClassificationSettings.weighting=uncertainty": "refused: one loss leaves nothing to weigh",
    "FoldsSettings.stratify": "changes the split; tests/data/test_folds.py",
    "AdamSettings.kind=adamw_8bit": "wants a GPU",
    "TrainSettings.precision": "bf16 has a row; fp16 wants a GPU, auto is one of the others",
    "TrainSettings.broken_gpu": "wants a GPU",
    "TrainSettings.trackers": "change no weight",
    "TrainSettings.keep": "changes no weight",
    "ModelSettings.gradient_checkpointing": "changes no score, as a test below proves",
    "PredictSettings": "of inference alone",
}
_SHOWN = {*EXEMPT, *used(load_recipe("tiny", SMALL_RUN)), *(name.rpartition("/")[2] for name in SPECIAL)}
PIECES = {**rows(UNIONS, SMALL, _SHOWN), **SPECIAL}

PAIRS = [
    "fgm+ema",
    "fgm+gradual_unfreeze",
    "fgm+windows",
    "fgm+uncertainty",
    "fgm+stitch",
    "fgm+ema+bf16",
    "fgm+binned+uncertainty",
    "pgd+noise",
    "pgd+layer_drop",
    "pgd+soup_greedy",
    "awp+swa",
    "awp+mixout",
    "awp+ordinal",
    "awp_first+gradual_unfreeze",
    "ema+mixout",
    "ema+lookahead",
    "ema+soup_uniform",
    "ema+accumulation",
    "ema+stitch_trained+layer_decay",
    "swa+floor",
    "lookahead+pull_to_start",
    "pull_to_start+freeze_embeddings+freeze_layers",
    "mixout+reinit_layers",
    "adafactor+layer_drop",
    "gradual_unfreeze+bias_correction",
    "gradual_unfreeze+lamb",
    "gradual_unfreeze+accumulation",
    "layer_drop+dropout/r_drop",
    "multi_sample_dropout+dropout/r_drop",
    "stitch_frozen+dropout/r_drop",
    "windows+dropout/r_drop",
    "windows+mix",
    "windows+token_weighted",
    "windows+stitch+statistics",
    "windows/stride+tokens/target_tokens",
    "windows/pool_attention+lstm_layers",
    "mix+ordinal",
    "newlines+shuffle+names",
    "bert/capitals+typos+statistics",
    "accumulation+hierarchical_layers",
    "accumulation+classification/balanced_weights+weight_column",
    "fgm+classification/balanced",
    "awp+ema+classification/focal",
    "soup_greedy+classification/smoothing",
    "windows+mix+classification",
    "statistics+multilabel/poly",
    "mix+multilabel/balanced_weights",
    "tokens/target_tokens+classification",
    "names+multilabel",
    "binned+weight_column",
    "uncertainty+weight_column",
]

# One override or several; words of the error.
REFUSED = [
    ("data.text.statistics=true | data.augment={mix: 0.3}", "describe whole essays"),
    ("tricks=[{kind: fgm}, {kind: fgm, epsilon: 2}]", "fgm stands 2 times"),
    ("tricks=[{kind: fgm}, {kind: awp}]", "both perturb along the gradient"),
    ("tricks=[{kind: ema}, {kind: swa}]", "both average the weights"),
    ("tricks=[{kind: ema, start: 1.0}]", "less than 1"),
    ("tricks=[{kind: fgm}] | train.accumulation=2", "set train.accumulation=1"),
    ("tricks=[{kind: pgd}] | model.freeze_embeddings=true", "which get no gradient"),
    ("tricks=[{kind: awp, from_epoch: 2}] | train.epochs=2", "awp would begin in epoch 2"),
    ("tricks=[{kind: awp, from_epoch: 0, from_score: 0.5}] | train.epochs=1", "the only one is at the run's end"),
    ("tricks=[{kind: lookahead, alpha: 1.0}]", "less than 1"),
    ("tricks=[{kind: lookahead}] | optimizer.kind=ranger", "ranger looks ahead itself"),
    ("tricks=[{kind: pull_to_start}]", "set optimizer.weight_decay=0"),
    ("tricks=[{kind: pull_to_start}] | optimizer.weight_decay=0 | optimizer.kind=madgrad", "undoes pull_to_start"),
    ("tricks=[{kind: pull_to_start}] | optimizer.weight_decay=0 | model.reinit_layers=1", "to random weights"),
    ("train.soup={kind: uniform} | train.epochs=1", "there is one; raise epochs"),
    ("model.head={kind: multi_sample_dropout, dropout: 0}", "greater than 0"),
    ("model.pooling={kind: lstm_tokens, kernel: 5}", "model.pooling.kernel: belongs to kind cnn"),
    ("model.pooling={kind: target_tokens}", "set data.text.prompt=tokens"),
    ("model.stitch={backbone: x, pooling: {kind: target_tokens}}", "set data.text.prompt=tokens"),
    ("model.stitch={backbone: x, frozen: both} | tricks=[{kind: fgm}]", "fgm acts on an encoder that"),
    ("model.stitch={backbone: x, frozen: both} | model.mixout=0.1", "mixout or reinit_layers acts on an encoder"),
    (
        "model.stitch={backbone: x, frozen: both} | model.freeze_layers=1",
        "freeze_layers does nothing with model.stitch.frozen=both",
    ),
    ("model.stitch={backbone: x, frozen: both} | optimizer.embeddings_rate=1.0e-5", "embeddings_rate does nothing"),
    ("optimizer.decay_by=thirds | optimizer.layer_decay=1.0", "does nothing with layer_decay"),
    ("optimizer.embeddings_rate=1.0e-5 | model.freeze_embeddings=true", "does nothing with model.freeze_emb"),
    ("optimizer={kind: adafactor, betas: [0.9, 0.99]}", "optimizer.betas: belongs to kinds adamw, "),
    ("optimizer={kind: madgrad, betas: [0.8, 0.999]}", "optimizer.betas: belongs to kinds adamw, "),
    ("optimizer={kind: adafactor, eps: 1.0e-8}", "optimizer.eps: belongs to kinds adamw, "),
    (
        "optimizer={kind: radam, bias_correction: false}",
        "optimizer.bias_correction: belongs to kind adamw; leave it out or take kind: adamw",
    ),
    ("optimizer={bias_correction: false, betas: [0.9, 0.99999]}", "too near to 1"),
    (
        "schedule={kind: linear, cycles: 2}",
        "schedule.cycles: belongs to kinds cosine, cosine_restarts; leave it out or",
    ),
    ("schedule={kind: cosine_restarts}", "schedule.cycles: missing, and it has no default"),
    ("schedule={kind: cosine_restarts, cycles: 1}", "schedule.cycles: Input should be greater than or equal to 2"),
    (
        "schedule={kind: cosine, power: 3.0}",
        "schedule.power: belongs to kind polynomial; leave it out or take kind: polynomial",
    ),
    ("schedule={kind: constant, floor: 0.5}", "schedule.floor: belongs to kinds cosine, "),
    ("schedule.floor=1.0", "less than 1"),
    ("schedule={warmup_steps: 5, warmup_share: 0.1}", "not both"),
    ("task={loss: mse, terms: [{kind: mse}]}", "name a loss twice"),
    ("task={loss: mse, delta: 0.1}", "delta does nothing"),
    ("task={loss: mse, quantile: 0.1}", "quantile does nothing"),
    ("task.terms=[{kind: rank, weight: 0.5, end_weight: 0.5}]", "leave it out"),
    ("task.terms=[{kind: rank, weight: 0}]", "give an end_weight"),
    ("task.terms=[{kind: rank}] | train.batch_size=1", "rank compares the essays of a batch"),
    ("task.terms=[{kind: rank, weight: 0.5}] | task.weighting=uncertainty", "learns the terms' weights"),
    ("task.weighting=uncertainty | data.target_columns=[syntax]", "nothing to weigh"),
    ("task.r_drop={alpha: 1.0}", "both passes would be equal"),
    ("data.weight_column=importance | task.loss=pearson", "pearson is one of the whole batch"),
    ("data.weight_column=importance | task.terms=[{kind: rank}]", "rank is one of the whole batch"),
    ("data.weight_column=full_text", "column of ids, texts or targets"),
    ("data.weight_form=standard_error", "does nothing without weight_column"),
    ("task.location=[1.0]", "do nothing without standardise"),
    ("task={standardise: true, scale: [1.0]}", "task.scale holds 1 numbers for 6 target columns"),
    ("task={kind: binned, standardise: true}", "task.standardise: belongs to kind regression"),
    ("task={kind: binned, r_drop: {alpha: 1.0}}", "both passes would be equal"),
    ("data.windows={length: 512}", "raise max_length"),
    ("data.text.template='{full_text}'", "template of text_column alone does nothing"),
    ("data.augment={}", "augment does nothing"),
    ("data.augment.mix=0.5 | train.batch_size=1", "mix joins essays of a batch"),
    ("data.augment.mix=0.5 | model.stitch={backbone: x}", "changes the first encoder's tokens only"),
]

_OF_KINDS = [group for key in ("optimizer", "schedule", "tricks") for group in kinds(UNIONS[key]).values()]
SWITCHED = {ModelSettings, AugmentSettings, TextSettings, *(base for group in _OF_KINDS for base in group.__mro__)}


@pytest.fixture(scope="module")
def book(competition, tmp_path_factory) -> Iterator[Book]:
    """Trains pieces; each combination once."""
    folder = tmp_path_factory.mktemp("book")
    prepare(folder, competition)
    gc.collect()
    gc.freeze()  # accelerate collects garbage after each fold, which takes longer than a run for all that is imported
    yield Book(folder, PIECES)
    gc.unfreeze()


def test_the_plain_run_tells_essays_apart(book):
    """Else a replay of other essays would pass: it may be off by 2e-5."""
    kept = pd.read_csv(book().path / "oof.csv")
    assert (kept[list(book.recipe().data.target_columns)].std() > 1e-3).all()


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_alone_does_something_is_packed_and_replayed(name, book, tmp_path):
    parent = name.rpartition("/")[0]
    run = book(name)
    assert run.differs(book(parent) if parent else book())
    run.check(book.folder / "data" / "train.csv")
    write_bundle([run.path], tmp_path / "bundle", check=replay(None, essays=6))


@pytest.mark.parametrize("together", PAIRS)
def test_each_of_several_pieces_does_something(together, book):
    """Without any one of them the run is another; the kept weights give the kept predictions."""
    names = together.split("+")
    run = book(*names)
    run.check(book.folder / "data" / "train.csv")
    for number, name in enumerate(names):
        assert run.differs(book(*names[:number], *names[number + 1 :])), f"{name} does nothing"


def test_checkpointing_changes_no_score_even_where_layers_draw(book):
    names = ("dropout", "attention_dropout", "layer_drop", "mixout")
    assert not book(*names, "model.gradient_checkpointing=true").differs(book(*names))


@pytest.mark.parametrize(
    ("name", "part", "least", "most"),
    [
        ("freeze_embeddings", "embeddings", 0, 0),
        ("freeze_layers", "encoder.layer.0", 0, 0),
        ("freeze_layers", "encoder.layer.1", 0.5, 2),
        ("reinit_layers", "encoder.layer.2", 2, 99),
        ("embeddings_rate", "embeddings", 0.01, 0.2),
        ("layer_decay", "encoder.layer.0", 0.1, 0.5),
        ("layer_decay", "encoder.layer.2", 0.8, 1.25),
        ("gradual_unfreeze", "embeddings", 0.01, 0.9),
        ("pull_to_start", "encoder", 0.1, 0.8),
        ("stitch_frozen", "", 0, 0),
    ],
)
def test_an_encoder_goes_as_far_as_the_piece_lets_it(name, part, least, most, book):
    """As a share of the plain run's way."""
    way, plain = (run.way(book.folder / "FIRST", "encoder", part) for run in (book(name), book()))
    assert least * plain <= way <= most * plain


@pytest.mark.parametrize(("name", "trains"), [("stitch", False), ("stitch_trained", True), ("stitch_frozen", False)])
def test_a_second_encoder_trains_where_it_shall(name, trains, book):
    assert (book(name).way(book.folder / "SECOND", "second.encoder") > 0) == trains


def test_the_book_is_complete(book):
    """Each kind that the recipe knows and each setting that can be switched on has a row."""
    known = {word for names in [(), *((name,) for name in PIECES)] for word in used(book.recipe(*names))}
    wanted = dict.fromkeys(word for word in offered(Recipe, SWITCHED) if not word.startswith(tuple(EXEMPT)))
    assert not [word for word in wanted if word not in known], "give each a row in SPECIAL"
    assert len(PAIRS) <= 60


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_what_would_do_nothing_is_refused(overrides, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", overrides.split(" | "))
