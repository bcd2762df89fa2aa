"""A run: recipe and essays to a run folder with folds, out-of-fold predictions and scores."""

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fb3.checkpoint import is_finished, mark_finished
from fb3.ensemble import Predictions
from fb3.errors import Fb3Error
from fb3.essays import read_essays
from fb3.files import read_json, sha256, write_csv, write_json, write_text
from fb3.folds import FoldSplit, fold_table, make_folds, read_folds
from fb3.layout import ENVIRONMENT, FOLD_JSON, OOF, RECIPE
from fb3.metrics import Score, rmse_columns
from fb3.progress import say
from fb3.recipe import Recipe, load_recipe
from fb3.training.fold import run_fold, versions
from fb3.training.session import OnEvaluation, Session, close_session, open_accelerator, open_session

TRUTH = "true_"  # prefix of the truths' columns in oof.csv
# What a run folder holds before its first evaluation: a start that failed there may be started over.
_HEAD = {"encoder", "scratch", RECIPE, "folds.csv", ENVIRONMENT, "log.jsonl", "fb3"}
DEBUG = ("data.sample=100", "folds.count=2", "train.epochs=2")


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, the score of all out-of-fold predictions in it, and its folds' numbers."""

    path: Path
    score: Score
    folds: list[int]


def train(
    recipe: Recipe | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    folds: Sequence[int] | None = None,
    debug: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Run:
    """Trains folds on `data`/train.csv into the run folder `out`.

    A run folder of the same recipe takes further folds; a fold that is there already is never overwritten.

    Args:
        recipe: a recipe, a YAML file or a built-in name.
        data: the folder with train.csv.
        out: the run folder.
        folds: which ones; none: all.
        debug: a hundred essays, two folds, two epochs.
        on_evaluation: called after each evaluation, in every process; what it raises ends the run.

    Raises:
        Fb3Error: what is wrong with recipe, data or folder, or a loss that became NaN.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe = _debug(recipe) if debug else recipe
    data, out = Path(data), Path(out)
    accelerator, precision = open_accelerator(recipe, out)
    essays = _sampled(read_essays(data / "train.csv", recipe.data, recipe.task), recipe)
    unlabelled = _unlabelled(recipe, data)
    splits = _splits(recipe, essays, data, out)
    if debug:
        splits = splits[:2]
    chosen = _chosen(splits, folds, out)
    accelerator.wait_for_everyone()  # until every process has looked at the folder, none may write to it
    session = open_session(recipe, essays, out, accelerator, precision, unlabelled, on_evaluation)
    if accelerator.is_main_process:
        _write_head(session, data, splits)
    for split in chosen:
        predictions = run_fold(session, split)
        if accelerator.is_main_process:
            _add_out_of_fold(session, split, predictions)
            mark_finished(out / f"fold{split.fold}")
        accelerator.wait_for_everyone()
    close_session(session)
    return _finish(session)


def train_fold(recipe: Recipe, essays: pd.DataFrame, split: FoldSplit, out: str | Path) -> Predictions:
    """Trains one fold into `out`/fold<n> and returns its out-of-fold predictions (not clipped).

    Args:
        recipe: what to train; a task.uda.file in it is an absolute path.
        essays: all essays with scores, as `read_essays` returns them.
        split: one of `make_folds(essays, recipe)`.
        out: gets encoder/ and fold<n>/; `train` writes the rest that a bundle needs.
    """
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
    essays = _sampled(read_essays(data / "train.csv", recipe.data, recipe.task), recipe)
    return [split.fold for split in make_folds(essays, recipe)]


def _debug(recipe: Recipe) -> Recipe:
    settings = recipe.model_dump(mode="json")
    for override in DEBUG:
        path, value = override.split("=")
        group, key = path.split(".")
        settings[group][key] = int(value)
    settings["folds"]["holdout"] = None
    return Recipe.from_mapping(settings, "debug mode")


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


def _sampled(essays: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    size = recipe.data.sample
    if size is None or size >= len(essays):
        return essays
    rows = np.random.default_rng(recipe.folds.seed).permutation(len(essays))[:size]
    return essays.iloc[np.sort(rows)].reset_index(drop=True)


def _splits(recipe: Recipe, essays: pd.DataFrame, data: Path, out: Path) -> list[FoldSplit]:
    """The splits of a run folder that has a fold already, else new ones.

    Raises:
        Fb3Error: the folder holds something else, or a run of another recipe or other data.
    """
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not any(out.glob(f"fold*/{FOLD_JSON}")):
        if foreign := sorted(there - _HEAD):
            raise Fb3Error(f"{out}: not empty and no run folder (it holds {foreign[:3]}); choose another --out")
        return make_folds(essays, recipe)
    saved = load_recipe(out / RECIPE)
    if saved != recipe:
        differ = [name for name in type(recipe).model_fields if getattr(saved, name) != getattr(recipe, name)]
        raise Fb3Error(f"{out}: holds a run of another recipe (they differ in {differ}); choose another --out")
    recorded = read_json(out / ENVIRONMENT)
    for key, file in _files(recipe, data).items():
        if recorded.get(key) != sha256(file):
            raise Fb3Error(
                f"{out}: its folds were trained on another {file.name} than {file.parent}'s; choose another --out"
            )
    return read_folds(out / "folds.csv", essays, recipe.data.id_column)


def _files(recipe: Recipe, data: Path) -> dict[str, Path]:
    """What a run is trained on, by the name of its hash in environment.json."""
    uda = recipe.task.uda
    return {"train_sha256": data / "train.csv"} | ({"unlabelled_sha256": data / uda.file} if uda else {})


def _chosen(splits: list[FoldSplit], folds: Sequence[int] | None, out: Path) -> list[FoldSplit]:
    known = {split.fold: split for split in splits}
    wanted = list(known) if folds is None else list(dict.fromkeys(folds))
    if unknown := [fold for fold in wanted if fold not in known]:
        raise Fb3Error(f"--folds: no fold {unknown}; there are {list(known)}")
    done = [fold for fold in wanted if is_finished(out / f"fold{fold}")]
    if done:
        left = [fold for fold in known if not is_finished(out / f"fold{fold}")]
        mend = f"give --folds {','.join(map(str, left))}" if left else "choose another --out"
        raise Fb3Error(f"{out}: folds {done} are trained already; {mend}")
    return [known[fold] for fold in wanted]


def _write_head(session: Session, data: Path, splits: list[FoldSplit]) -> None:
    """What a run folder holds before the first step."""
    recipe, out = session.recipe, session.out
    write_text(recipe.to_yaml(), out / RECIPE)
    write_csv(fold_table(session.essays, splits, recipe.data.id_column), out / "folds.csv")
    environment = {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if session.accelerator.device.type == "cuda" else platform.machine(),
        "precision": session.precision,
        "processes": session.accelerator.num_processes,
        "seed": recipe.train.seed,
        "data": str(data.resolve()),
        **{key: sha256(file) for key, file in _files(recipe, data).items()},
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(environment, out / ENVIRONMENT)


def _add_out_of_fold(session: Session, split: FoldSplit, predictions: Predictions) -> None:
    """Adds a fold to oof.csv (id, fold, truths, clipped predictions) and computes scores.json anew from it."""
    recipe, path = session.recipe, session.out / OOF
    columns, identifier = list(recipe.data.target_columns), recipe.data.id_column
    table = pd.DataFrame(session.task.clip(predictions.values), columns=columns)
    truth = pd.DataFrame(session.targets[split.valid_rows], columns=columns).add_prefix(TRUTH)
    table = pd.concat([truth, table], axis=1)
    table.insert(0, identifier, predictions.ids)
    table.insert(1, "fold", split.fold)
    if path.is_file():
        others = pd.read_csv(path, dtype={identifier: str}, keep_default_na=False).query("fold != @split.fold")
        table = pd.concat([others, table])
    write_csv(table.sort_values(["fold", identifier]), path)
    write_json(scores_of(session.out, recipe), session.out / "scores.json")


def scores_of(run: Path, recipe: Recipe) -> dict:
    """The content of scores.json, from oof.csv alone: the score of all rows, and of each fold."""
    columns = list(recipe.data.target_columns)
    table = pd.read_csv(run / OOF, dtype={recipe.data.id_column: str}, keep_default_na=False)

    def score(rows: pd.DataFrame) -> dict:
        each = rmse_columns(rows[[TRUTH + c for c in columns]].to_numpy(), rows[columns].to_numpy())
        return {
            "score": float(each.mean()),
            "columns": dict(zip(columns, each.tolist(), strict=True)),
            "essays": len(rows),
        }

    folds = {str(n): score(rows) for n, rows in table.groupby("fold")}
    total = len(pd.read_csv(run / "folds.csv", dtype=str).query("fold != '-1'"))
    return {**score(table), "complete": len(table) == total, "folds": folds}


def _finish(session: Session) -> Run:
    scores = read_json(session.out / "scores.json")
    folds = sorted(int(n) for n in scores["folds"])
    kind = "CV" if scores["complete"] else f"out-of-fold score of folds {folds}"
    columns = " ".join(f"{name} {value:.4f}" for name, value in scores["columns"].items())
    session.log.event(
        "run",
        f"{kind} {scores['score']:.4f} over {scores['essays']} essays | {columns} | {session.out}",
        **scores,
    )
    watched = session.on_evaluation is not None  # by a caller who knows what comes next
    if session.accelerator.is_main_process and not scores["complete"] and not watched:
        say(f"train the other folds with --folds, or pack these: python build_dataset.py {session.out} --out bundle")
    return Run(session.out, Score(scores["score"], scores["columns"]), folds)
