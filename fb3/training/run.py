"""A run: recipe and essays to a run folder with folds, out-of-fold predictions and scores.

Imports torch only once recipe, essays, folds and folder are checked: that takes ten seconds and more, and a mistake is
to be told at once.
"""

import platform
import re
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fb3 import version
from fb3.data.essays import read_essays, read_numbers, training_files
from fb3.data.folds import FoldSplit, fold_table, make_folds, read_folds, sampled
from fb3.errors import Fb3Error, Stopped
from fb3.models.backbone_files import SECOND_KEY, check_backbone
from fb3.prediction.predictions import Predictions
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.load import differences
from fb3.runs.fold_json import is_begun, is_finished, mark_finished
from fb3.runs.scores import TRUTH, caveats, named_score, read_scores, scores_of
from fb3.system.disk_space import in_room
from fb3.system.file_names import ENCODER, ENVIRONMENT, LOCK, OOF, RECIPE, RESUME, encoder_files
from fb3.system.files import read_json, sha256, sweep, write_csv, write_json, write_text
from fb3.system.folder_lock import alone
from fb3.system.git import git_state
from fb3.system.kaggle import is_main_process, parse_duration, session_seconds
from fb3.system.progress import as_command, say
from fb3.targets.metrics import Score
from fb3.training.stop import Stop

if TYPE_CHECKING:
    from fb3.training.session import OnEvaluation, Session

# What a run folder holds before its first evaluation: a start that failed there may be started over.
_HEAD = {"encoder", "scratch", RECIPE, "folds.csv", ENVIRONMENT, "log.jsonl", "fb3", LOCK}
_UNFINISHED = re.compile(r"fold\d+|\..*\.part")  # or what a killed process began to write


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, the score of all out-of-fold predictions in it, and its folds' numbers."""

    path: Path
    score: Score
    folds: list[int]


@in_room("out")
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
    """Trains folds on `data`/train.csv into the run folder `out`.

    A run folder of the same recipe takes further folds; a fold that is there already is never overwritten, one that was
    stopped goes on from its last save. SIGTERM and SIGINT save and stop.

    Args:
        recipe: a recipe, a YAML file or a built-in name.
        data: the folder with train.csv.
        out: the run folder.
        folds: which ones; none: all.
        debug: a hundred essays, two folds, two epochs.
        on_evaluation: called after each evaluation, in every process; what it raises ends the run. It may train more
            than one run, so that signals are left to the caller.
        resume: the caller expects something to go on with: says so where there is nothing; that all is trained already
            is no error.
        stop_after: save and stop then, such as 8h30m or seconds; from now, on Kaggle from the session's start.

    Raises:
        Fb3Error: what is wrong with recipe, data or folder, or a loss that became NaN; another process trains there.
        Stopped: it was stopped and is saved; the same call goes on.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe = recipe.debug() if debug else recipe
    data, out = Path(data), Path(out)
    stop = Stop(None if stop_after is None else parse_duration(str(stop_after)) - session_seconds())
    check_backbone(recipe.model.backbone)
    if recipe.model.stitch:
        check_backbone(recipe.model.stitch.backbone, SECOND_KEY)
    essays = sampled(read_essays(data / "train.csv", recipe.data, recipe.task), recipe)
    unlabelled = _unlabelled(recipe, data)
    begun = _begun(out)
    with alone(out, "fb3 train") if is_main_process() else nullcontext():
        splits = _splits(recipe, essays, data, out)
        if debug:
            splits = splits[:2]
        chosen = _chosen(splits, folds, out, resume)
        from fb3.training.saves import drop_finished
        from fb3.training.session import close_session, open_accelerator, open_session

        accelerator, precision = open_accelerator(recipe, out)
        accelerator.wait_for_everyone()  # until every process has looked at the folder, none may write to it
        if not chosen:
            return run_of(out)
        if accelerator.is_main_process:
            sweep(out)
            drop_finished(out)
        digests = {key: sha256(file) for key, file in training_files(recipe, data).items()}
        session = open_session(
            recipe, essays, out, accelerator, precision, unlabelled, on_evaluation, digests=digests, stop=stop
        )
        if accelerator.is_main_process:
            _write_head(session, data, splits, digests, begun)
        with nullcontext() if on_evaluation else stop.listening():
            _train_folds(session, chosen)
        close_session(session)
        return _finish(session)


def _train_folds(session: "Session", chosen: list[FoldSplit]) -> None:
    from fb3.training.fold import run_fold
    from fb3.training.saves import asked_to_stop, drop_finished

    accelerator, out = session.accelerator, session.out
    for place, split in enumerate(chosen):
        if place and (reason := asked_to_stop(session)):
            done, left = ([other.fold for other in part] for part in (chosen[:place], chosen[place:]))
            raise Stopped(f"{reason}: folds {done} are trained, {left} are left; the same command goes on")
        predictions = run_fold(session, split)
        if accelerator.is_main_process:
            _add_out_of_fold(session, split, predictions)
            mark_finished(out / f"fold{split.fold}")
            drop_finished(out)
        accelerator.wait_for_everyone()


@in_room("out")
def train_fold(recipe: Recipe, essays: pd.DataFrame, split: FoldSplit, out: str | Path) -> Predictions:
    """Trains one fold into `out`/fold<n> and returns its out-of-fold predictions (not clipped).

    Args:
        recipe: what to train; a task.uda.file in it is an absolute path.
        essays: all essays with scores, as `read_essays` returns them.
        split: one of `make_folds(essays, recipe)`.
        out: gets encoder/ and fold<n>/; `train` writes the rest that a bundle needs, and saves on the way.
    """
    from fb3.training.fold import run_fold
    from fb3.training.session import close_session, open_accelerator, open_session

    session = open_session(
        recipe, essays, Path(out), *open_accelerator(recipe, Path(out)), unlabelled=_unlabelled(recipe, None)
    )
    predictions = run_fold(session, split)
    close_session(session)
    return predictions


def fold_numbers(recipe: Recipe, data: Path) -> list[int]:
    """The folds into which a recipe splits `data`/train.csv.

    Raises:
        Fb3Error: a train.csv that cannot be read, or that the recipe cannot split.
    """
    essays = sampled(read_essays(data / "train.csv", recipe.data, recipe.task), recipe)
    return [split.fold for split in make_folds(essays, recipe)]


def _unlabelled(recipe: Recipe, data: Path | None) -> pd.DataFrame | None:
    """The essays without scores, where the recipe names some."""
    if not recipe.task.uda:
        return None
    file = recipe.task.uda.file
    if data is None and not Path(file).is_absolute():
        raise Fb3Error(f"task.uda.file={file}: train_fold knows no data folder; give an absolute path")
    try:
        return read_essays(Path(data or "") / file, recipe.data)
    except Fb3Error as error:
        raise Fb3Error(f"task.uda.file: {error}") from None


def _splits(recipe: Recipe, essays: pd.DataFrame, data: Path, out: Path) -> list[FoldSplit]:
    """The splits of a run folder that has a fold or a save already, else new ones.

    Raises:
        Fb3Error: it is a run of another recipe or other data.
    """
    if not _begun(out):
        return make_folds(essays, recipe)
    saved = load_recipe(out / RECIPE)
    if saved != recipe:
        differ = "; ".join(differences(recipe, saved))
        raise Fb3Error(f"{out}: holds a run of another recipe ({differ}); choose another --out")
    recorded = read_json(out / ENVIRONMENT)
    for key, file in training_files(recipe, data).items():
        if recorded.get(key) != sha256(file):
            raise Fb3Error(
                f"{out}: its folds were trained on another {file.name} than {file.parent}'s; choose another --out"
            )
    return read_folds(out / "folds.csv", essays, recipe.data.id_column)


def _begun(out: Path) -> bool:
    """Whether a run folder has a fold or a save.

    Raises:
        Fb3Error: the folder holds something else.
    """
    if is_begun(out):
        return True
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if foreign := sorted(name for name in there - _HEAD if not _UNFINISHED.fullmatch(name)):
        raise Fb3Error(f"{out}: not empty and no run folder (it holds {foreign[:3]}); choose another --out")
    return False


def _chosen(splits: list[FoldSplit], folds: Sequence[int] | None, out: Path, resume: bool) -> list[FoldSplit]:
    """The wanted folds that are not trained yet.

    Raises:
        Fb3Error: there is no such fold, or none is left, unless it is to `resume`.
    """
    known = {split.fold: split for split in splits}
    wanted = list(known) if folds is None else list(dict.fromkeys(folds))
    if unknown := [fold for fold in wanted if fold not in known]:
        raise Fb3Error(f"--folds: no fold {unknown}; there are {list(known)}")
    done = [fold for fold in wanted if is_finished(out / f"fold{fold}")]
    left = [fold for fold in wanted if fold not in done]
    if done and not left and not resume:
        others = [fold for fold in known if not is_finished(out / f"fold{fold}")]
        mend = f"give --folds {','.join(map(str, others))}" if others else "choose another --out"
        raise Fb3Error(f"{out}: folds {done} are trained already; {mend}")
    if done:
        say(f"{out}: folds {done} are trained already; left are {left or 'none'}")
    elif resume and not any(any((out / f"fold{fold}" / RESUME).glob("[0-9]*")) for fold in left):
        say(f"{out}: nothing is saved there; starts afresh")
    return [known[fold] for fold in left]


def _write_head(session: "Session", data: Path, splits: list[FoldSplit], digests: dict[str, str], begun: bool) -> None:
    """What a run folder holds before the first step."""
    import torch

    from fb3.training.session import versions

    recipe, out = session.recipe, session.out
    write_text(recipe.to_yaml(), out / RECIPE)
    write_csv(fold_table(session.essays, splits, recipe.data.id_column), out / "folds.csv")
    environment = {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if session.accelerator.device.type == "cuda" else platform.machine(),
        "precision": session.precision,
        "processes": session.accelerator.num_processes,
        "seeds": {"train": recipe.train.seed, "folds": recipe.folds.seed},  # a fold's: train's and its number
        "git": {"here": git_state(Path()), "fb3": git_state(Path(version.__file__).parent, tracked="version.py")},
        "data": str(data.resolve()),
        **digests,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "encoder": {name: sha256(out / ENCODER / name) for name in encoder_files(bool(recipe.model.stitch))},
    }
    if begun:  # other folds, or the first part of this one, come from other sessions
        before = read_json(out / ENVIRONMENT)
        environment["earlier"] = [*before.pop("earlier", []), before]
    write_json(environment, out / ENVIRONMENT)


def _add_out_of_fold(session: "Session", split: FoldSplit, predictions: Predictions) -> None:
    """Adds a fold to oof.csv (id, fold, truths, clipped predictions) and computes scores.json anew from it."""
    recipe, path = session.recipe, session.out / OOF
    columns, identifier = list(recipe.data.target_columns), recipe.data.id_column
    table = pd.DataFrame(session.task.clip(predictions.values), columns=columns)
    truth = pd.DataFrame(session.targets[split.valid_rows], columns=columns).add_prefix(TRUTH)
    table = pd.concat([truth, table], axis=1).astype(np.float64)  # as text the same, whatever is there already
    table.insert(0, identifier, predictions.ids)
    table.insert(1, "fold", split.fold)
    if path.is_file():
        others = read_numbers(path, identifier, [TRUTH + column for column in columns] + columns)
        others = others.query("fold != @split.fold")
        table = pd.concat([others, table])
    write_csv(table.sort_values(["fold", identifier]), path)
    write_json(scores_of(session.out, recipe), session.out / "scores.json")


def _finish(session: "Session") -> Run:
    scores, run = read_scores(session.out / "scores.json"), run_of(session.out)
    named = named_score(scores["score"], caveats(session.out, session.recipe))
    columns = " ".join(f"{name} {value:.4f}" for name, value in scores["columns"].items())
    session.log.event(
        "run",
        f"{named} over {scores['essays']} essays | {columns} | {session.out}",
        **scores,
    )
    watched = session.on_evaluation is not None  # by a caller who knows what comes next
    if session.accelerator.is_main_process and not scores["complete"] and not watched:
        pack = as_command(["python", "build_dataset.py", session.out, "--out", "bundle"])
        say(f"train the other folds with --folds, or pack these: {pack}")
    return run


def run_of(out: Path) -> Run:
    """A run folder with a trained fold, as `train` returns it."""
    scores = read_scores(out / "scores.json")
    return Run(out, Score(scores["score"], scores["columns"]), sorted(map(int, scores["folds"])))
