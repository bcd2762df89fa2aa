"""A run: recipe and essays to a run folder with folds, out-of-fold predictions and scores.

torch is imported only once recipe, essays, folds and folder are checked: the import takes ten seconds and more, and a
mistake should be told at once.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fb3.data.essays import read_essays, training_files
from fb3.data.folds import FoldSplit, describe_groups, make_folds, take_sample
from fb3.data.pseudo_essays import PseudoEssays, read_provenance, read_pseudo_essays
from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error, Stopped
from fb3.models.backbone_files import FEATURE_KEY, FRAMES_KEY, SECOND_KEY, check_backbone
from fb3.prediction.predictions import Predictions
from fb3.recipe import Recipe, load_recipe
from fb3.runs.decide import write_scores
from fb3.runs.fold_json import is_begun, mark_finished
from fb3.runs.run_folder import Run, run_of
from fb3.runs.scores import TRUTH, caveats, decision_in_words, named_score, read_scores
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import OOF, RECIPE, fold_folder
from fb3.system.files import delete_partial_files, sha256, write_csv
from fb3.system.folder_lock import lock_folder
from fb3.system.kaggle import is_main_process, parse_duration, session_seconds
from fb3.system.progress import as_command, say
from fb3.targets.build import resolve, target_of
from fb3.targets.decisions import FITTED, decision_of, fit_decision
from fb3.training.run_log import columns_in_words
from fb3.training.run_start import (
    continued_splits,
    folds_to_train,
    refuse_foreign_folder,
    tell_seen_texts,
    write_first_files,
)
from fb3.training.stop_request import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fb3.training.session import OnEvaluation, Session


@raises_disk_full("out")
def train(
    recipe: Recipe | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    folds: Sequence[int] | None = None,
    debug: bool = False,
    on_evaluation: "OnEvaluation | None" = None,
    resume: bool = False,
    stop_after: str | float | None = None,
) -> Run:
    """Trains folds on the training essays in `data` into the run folder `out`.

    A run folder of the same recipe takes further folds; a fold that is there already is never overwritten, one that was
    stopped goes on from its last save. SIGTERM and SIGINT save and stop.

    Args:
        recipe: a recipe, a YAML file or a built-in name.
        data: the folder with train.csv, or the file that data.files.train names.
        out: the run folder.
        folds: numbers of the folds to train; none: all.
        debug: a hundred essays, two folds, two epochs.
        on_evaluation: called after each evaluation, in every process; an error that it raises ends the run. A caller
            that gives it may train more than one run, so signals are left to the caller.
        resume: the caller expects a run to go on with. A message says so where there is none, and a run that is trained
            already is no error.
        stop_after: time after which to save and stop, such as 8h30m or seconds; counted from now, on Kaggle from the
            session's start.

    Raises:
        Fb3Error: recipe, data or folder are wrong, the loss became NaN, or another process trains there.
        Stopped: it was stopped and is saved; the same call goes on.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe = recipe.debug() if debug else recipe
    data, out = Path(data), Path(out)
    stop = StopRequest(None if stop_after is None else parse_duration(str(stop_after)) - session_seconds())
    _check_backbones(recipe)
    recipe, essays = _read_training(recipe, data)
    unlabelled = _read_unlabelled(recipe, data)
    if recipe.pseudo:
        read_provenance(Path(recipe.pseudo.folder))
        recipe = recipe.with_labels(str(Path(recipe.pseudo.folder).absolute()))
    refuse_foreign_folder(out)
    digests = {key: sha256(file) for key, file in training_files(recipe, data).items()}
    with lock_folder(out, "fb3 train") if is_main_process() else nullcontext():
        begun = is_begun(out)
        splits = continued_splits(recipe, essays, digests, out) if begun else make_folds(essays, recipe)
        if debug:
            splits = splits[:2]
        if recipe.folds.group_column and is_main_process():
            say(describe_groups(essays, splits, recipe.folds.group_column))
        chosen = folds_to_train(splits, folds, out, resume)
        _check_metric(recipe, essays, chosen)
        pseudo = read_pseudo_essays(recipe, data, essays, chosen, target_of(recipe).columns)
        from fb3.runs.save_folder import delete_finished
        from fb3.training.processes import open_accelerator
        from fb3.training.session import close_session

        if recipe.estimator:
            from fb3.training.estimators.feature_sources import check_sources

            check_sources(recipe, essays, chosen, out)
        accelerator, precision = open_accelerator(recipe, out)
        accelerator.wait_for_everyone()  # until every process has looked at the folder, none may write to it
        if not chosen:
            return run_of(out)
        if accelerator.is_main_process:
            delete_partial_files(out)
            delete_finished(out)
        essays, unlabelled, pseudo = _with_vectors(recipe, out, accelerator, essays, unlabelled, pseudo)
        open_session, run_fold = _learner(recipe)
        session = open_session(recipe, essays, out, accelerator, precision, unlabelled, pseudo)
        session = replace(session, on_evaluation=on_evaluation, digests=digests, stop=stop)
        if accelerator.is_main_process:
            write_first_files(session, data, splits, begun)
            if not recipe.estimator:
                tell_seen_texts(session, chosen)
        with nullcontext() if on_evaluation else stop.listening():
            _train_folds(session, chosen, run_fold)
        close_session(session)
        return _finish(session)


def _check_backbones(recipe: Recipe) -> None:
    if not recipe.estimator:
        check_backbone(recipe.model.backbone)
    if recipe.model.stitch:
        check_backbone(recipe.model.stitch.backbone, SECOND_KEY)
    if recipe.data.image_encoder:
        check_backbone(recipe.data.image_encoder, FRAMES_KEY)
    for feature in recipe.estimator.features if recipe.estimator else ():
        if feature.kind == "embeddings" and not (Path(feature.encoder) / RECIPE).is_file():
            check_backbone(feature.encoder, FEATURE_KEY)


def _learner(recipe: Recipe) -> tuple[Callable, Callable]:
    """The functions that open a session and train a fold; the one place that asks what a run trains."""
    if recipe.estimator:
        from fb3.training.estimators.estimator_run import open_estimator_session, run_estimator_fold

        return open_estimator_session, run_estimator_fold
    from fb3.training.fold import run_fold
    from fb3.training.session import open_session

    return open_session, run_fold


def _with_vectors(
    recipe: Recipe,
    out: Path,
    accelerator: "Accelerator",
    essays: pd.DataFrame,
    unlabelled: pd.DataFrame | None,
    pseudo: PseudoEssays | None,
) -> tuple[pd.DataFrame, pd.DataFrame | None, PseudoEssays | None]:
    """All items of a run with vectors in place of their pictures."""
    if not recipe.data.image_encoder:
        return essays, unlabelled, pseudo
    from fb3.training.run_pictures import read_pictures

    tables = [essays, unlabelled, pseudo and pseudo.essays]
    essays, unlabelled, labelled = read_pictures(recipe, out, accelerator, tables)
    return essays, unlabelled, pseudo and replace(pseudo, essays=labelled)


def _check_metric(recipe: Recipe, essays: pd.DataFrame, splits: list[FoldSplit]) -> None:
    """Refuses truths that give the metric no value in a fold, or no decision, before hours of training."""
    target, decision = target_of(recipe), decision_of(recipe)
    truths = target.truths(essays)
    for split in splits:
        try:
            target.score(truths[split.valid_rows], truths[split.valid_rows])
        except Fb3Error as error:
            raise Fb3Error(f"fold {split.fold}: {error}") from None
    if decision.kind in FITTED:
        fit_decision(decision, target.metric, truths, truths, target.columns)


def _train_folds(session: "Session", chosen: list[FoldSplit], run_fold: Callable) -> None:
    from fb3.runs.save_folder import delete_finished
    from fb3.training.saves import stop_reason

    accelerator, out = session.accelerator, session.out
    for place, split in enumerate(chosen):
        if place and (reason := stop_reason(session)):
            done, left = ([other.fold for other in part] for part in (chosen[:place], chosen[place:]))
            raise Stopped(f"{reason}: folds {done} are trained, {left} are left; the same command goes on")
        predictions = run_fold(session, split)
        if accelerator.is_main_process:
            _add_out_of_fold(session, split, predictions)
            mark_finished(fold_folder(out, split.fold))
            delete_finished(out)
        accelerator.wait_for_everyone()


@raises_disk_full("out")
def train_fold(recipe: Recipe, essays: pd.DataFrame, split: FoldSplit, out: str | Path) -> Predictions:
    """Trains one fold into `out`/fold<n> and returns its out-of-fold predictions (not clipped).

    Args:
        recipe: the recipe; a task.uda.file in it is an absolute path.
        essays: all essays with scores, as `read_essays` returns them.
        split: one of `make_folds(essays, recipe)`.
        out: gets encoder/ and fold<n>/; `train` writes the rest that a bundle needs, and saves on the way.
    """
    from fb3.training.processes import open_accelerator
    from fb3.training.session import close_session

    open_session, run_fold = _learner(recipe)
    recipe, out, unlabelled = resolve(recipe, essays), Path(out), _read_unlabelled(recipe, None)
    pseudo = read_pseudo_essays(recipe, None, essays, [split], target_of(recipe).columns)
    accelerator, precision = open_accelerator(recipe, out)
    essays, unlabelled, pseudo = _with_vectors(recipe, out, accelerator, essays, unlabelled, pseudo)
    session = open_session(recipe, essays, out, accelerator, precision, unlabelled, pseudo)
    predictions = run_fold(session, split)
    close_session(session)
    return predictions


def fold_numbers(recipe: Recipe, data: Path) -> list[int]:
    """The folds into which a recipe splits the training essays in `data`.

    Raises:
        Fb3Error: the essays cannot be read, or the recipe cannot split them.
    """
    recipe, essays = _read_training(recipe, data)
    return [split.fold for split in make_folds(essays, recipe)]


def _read_training(recipe: Recipe, data: Path) -> tuple[Recipe, pd.DataFrame]:
    """The essays that a recipe trains on, and the recipe as its run stores it."""
    essays = read_essays(data / recipe.data.files.train, recipe.data, target_of(recipe), recipe.folds)
    recipe = resolve(recipe, essays)
    return recipe, take_sample(essays, recipe)


def _read_unlabelled(recipe: Recipe, data: Path | None) -> pd.DataFrame | None:
    """Reads the essays without scores, where the recipe names some."""
    if not recipe.task.uda:
        return None
    file = recipe.task.uda.file
    if data is None and not Path(file).is_absolute():
        raise Fb3Error(f"task.uda.file={file}: train_fold knows no data folder; give an absolute path")
    try:
        split = "test" if file == recipe.data.files.test else "train"
        return read_essays(Path(data or "") / file, recipe.data, split=split, folder=data)
    except Fb3Error as error:
        raise Fb3Error(f"task.uda.file: {error}") from None


def _add_out_of_fold(session: "Session", split: FoldSplit, predictions: Predictions) -> None:
    """Adds a fold to oof.csv (id, fold, truths, clipped predictions) and computes scores.json anew from it."""
    recipe, path = session.recipe, session.out / OOF
    columns, identifier = list(session.target.columns), recipe.data.id_column
    table = pd.DataFrame(session.target.clip(predictions.values), columns=columns)
    truth = pd.DataFrame(session.targets[split.valid_rows], columns=columns).add_prefix(TRUTH)
    table = pd.concat([truth, table], axis=1).astype(np.float64)  # float64, as the file's folds are read
    table.insert(0, identifier, predictions.ids)
    table.insert(1, "fold", split.fold)
    if path.is_file():
        others = read_numbers(path, identifier, [TRUTH + column for column in columns] + columns)
        others = others.query("fold != @split.fold")
        table = pd.concat([others, table])
    write_csv(table.sort_values(["fold", identifier]), path)
    write_scores(session.out, recipe)


def _finish(session: "Session") -> Run:
    scores, run = read_scores(session.out / "scores.json"), run_of(session.out)
    named = named_score(scores["score"], session.recipe.metric, caveats(session.out, session.recipe))
    session.log.event(
        "run",
        f"{named} over {scores['essays']} essays{decision_in_words(scores)}{columns_in_words(scores['columns'])}"
        f" | {session.out}",
        **scores,
    )
    watched = session.on_evaluation is not None  # then the caller knows what comes next
    if session.accelerator.is_main_process and not scores["complete"] and not watched:
        pack = as_command(["python", "build_dataset.py", session.out, "--out", "bundle"])
        say(f"train the other folds with --folds, or pack these: {pack}")
    return run
