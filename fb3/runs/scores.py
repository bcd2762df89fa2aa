"""Scores of files, predictions against truths matched by id, and of a run, from its oof.csv."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, parse_numbers, read_numbers, read_table, to_floats, whole_numbers
from fb3.errors import Fb3Error, nearest
from fb3.recipe import Recipe, load_recipe
from fb3.runs.fold_json import is_finished
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import OOF, RECIPE, fold_folder
from fb3.system.files import read_json
from fb3.system.kaggle import COMPETITION_MARKER
from fb3.targets.metrics import METRICS

TRUTH = "true_"  # prefix of the truths' columns in oof.csv


class FileScore(NamedTuple):
    """The score of a file of predictions.

    metric: its name in `METRICS`. overall: its value. columns: its value for each. left_out: numeric columns of the
    truth that were not scored. caveats: reasons why the score of a run's oof.csv is no CV, see `caveats`.
    """

    metric: str
    overall: float
    columns: dict[str, float]
    left_out: list[str]
    caveats: list[str]


def score_files(
    predictions: str | Path, truth: str | Path, subset: bool = False, metric: str | None = None
) -> FileScore:
    """The metric of a CSV of predictions against a CSV of truths.

    The id is the first column of `predictions`. The targets are named by the first of these that is there: the recipe
    of the run whose oof.csv `predictions` is, the truths in `predictions` itself, the sample_submission.csv beside
    `truth`; else they are the numeric columns that both files share.

    Args:
        predictions: ids and one column a target; other columns are ignored.
        truth: ids, targets, perhaps texts and further columns.
        subset: score the predicted ids only, where the truth has more.
        metric: a name in `METRICS`; None: the metric of the run whose oof.csv `predictions` is, else mcrmse.

    Raises:
        Fb3Error: a missing column, duplicate or empty ids, ids that do not match, a cell that is no number.
    """
    if metric is not None and metric not in METRICS:
        raise Fb3Error(f"--metric {metric}: no such metric; {nearest(metric, METRICS)}")
    predictions, truth = Path(predictions), Path(truth)
    predicted = read_table(predictions, [])
    identifier = predicted.columns[0]
    true = read_table(truth, [])
    if identifier not in true.columns:
        has = f"it has {list(true.columns)}"
        raise Fb3Error(f"{truth}: no column {identifier!r}, which is the first of {predictions}, for the ids; {has}")
    check_ids(predicted[identifier], predictions)
    check_ids(true[identifier], truth)
    numeric = [c for c in true.columns if c not in {identifier, FOLD_COLUMN} and _is_numeric(true[c])]
    recipe = _recipe_of(predictions, identifier)
    columns = _targets(predictions, predicted, truth, true, recipe) or [c for c in numeric if c in predicted.columns]
    if not columns:
        has = f"it has {list(true.columns)}, {predictions} has {list(predicted.columns)}"
        raise Fb3Error(f"{truth}: no column of scores in it that is predicted; {has}")
    more = set(predicted[identifier]) <= set(true[identifier])
    mend = f"; --subset scores without the ids only in {truth}" if more and not subset else ""
    rows = match_ids(true[identifier], predicted[identifier], truth, predictions, mend, subset=subset)
    metric = metric or (recipe.metric if recipe else "mcrmse")
    score = METRICS[metric].score(
        parse_numbers(true.iloc[rows], identifier, columns, truth),
        parse_numbers(predicted, identifier, columns, predictions),
        columns,
    )
    return FileScore(
        metric,
        score.overall,
        score.columns,
        [column for column in numeric if column not in columns],
        caveats(predictions.parent, recipe) if recipe else [],
    )


def _recipe_of(predictions: Path, identifier: str) -> Recipe | None:
    """The recipe of the run folder whose oof.csv this is."""
    path = predictions.parent / RECIPE
    recipe = load_recipe(path) if predictions.name == OOF and path.is_file() else None
    return recipe if recipe and recipe.data.id_column == identifier else None


def _targets(
    predictions: Path, predicted: pd.DataFrame, truth: Path, true: pd.DataFrame, recipe: Recipe | None
) -> list[str]:
    """The targets that a file names; empty where none does. Refuses a target without predictions or without truths."""
    held = [c.removeprefix(TRUTH) for c in predicted.columns if c.startswith(TRUTH)]
    if recipe:
        named, source = list(recipe.data.target_columns), predictions.parent / RECIPE
    elif held:
        named, source = held, predictions
    else:
        named, source = _of_sample(stored_file(truth.with_name(COMPETITION_MARKER)), predicted.columns[0], true)
    for path, table in ((predictions, predicted), (truth, true)):
        if missing := [column for column in named if column not in table.columns]:
            raise Fb3Error(f"{path}: no column {missing}, a target by {source}; it has {list(table.columns)}")
    return named


def _of_sample(path: Path, identifier: str, true: pd.DataFrame) -> tuple[list[str], Path]:
    """The columns of a sample submission; none where there is no such file, or a column has no truth."""
    columns = list(read_table(path, []).columns) if path.is_file() else []
    fits = identifier in columns and set(columns) <= set(true.columns)
    return [column for column in columns if fits and column != identifier], path


def caveats(run: Path, recipe: Recipe) -> list[str]:
    """Reasons why the score of a run folder, or of a run in a bundle, is no CV, in words; empty where it is one.

    The recipe tells a --debug run: it is the one file that run folders of every version and bundles share.
    """
    if not (run / "folds.csv").is_file():
        return ["folds.csv is missing, so nothing says how many folds there are"]
    table = read_table(run / "folds.csv", [FOLD_COLUMN])
    known = sorted({*whole_numbers(table[FOLD_COLUMN], run / "folds.csv")} - {-1})
    left = [fold for fold in known if not is_finished(fold_folder(run, fold))]
    found = []
    if recipe.is_debug():
        found.append(f"a --debug run, {len(table)} essays and {recipe.train.epochs} epochs")
    elif recipe.data.sample == len(table):
        found.append(f"trained on a sample of {len(table)} essays (data.sample)")
    if left:
        found.append(f"folds {left} of {len(known)} are not trained to their end")
    return found


def named_score(score: float, metric: str, found: list[str]) -> str:
    """A run's score by its right name: a CV only where `caveats` found nothing."""
    named = f"{METRICS[metric].title} {score:.4f}"
    return f"out-of-fold {named} (no CV: {'; '.join(found)})" if found else f"CV {named}"


def scores_of(run: Path, recipe: Recipe) -> dict:
    """The content of scores.json, from oof.csv alone: the score of all rows, and of each fold."""
    columns = list(recipe.data.target_columns)
    table = read_numbers(run / OOF, recipe.data.id_column, [TRUTH + column for column in columns] + columns)

    def score(rows: pd.DataFrame) -> dict:
        truth, predicted = rows[[TRUTH + c for c in columns]].to_numpy(), rows[columns].to_numpy()
        each = METRICS[recipe.metric].score(truth, predicted, columns)
        return {"score": each.overall, "columns": each.columns, "essays": len(rows)}

    folds = {str(n): score(rows) for n, rows in table.groupby("fold")}
    total = int((read_table(run / "folds.csv", [FOLD_COLUMN])[FOLD_COLUMN] != "-1").sum())
    return {**score(table), "complete": len(table) == total, "folds": folds}


def read_scores(path: Path) -> dict:
    """Reads the scores.json of `scores_of`; an Fb3Error where it is broken or something else."""
    scores = read_json(path, {"score": (float, int), "columns": dict, "essays": int, "complete": bool, "folds": dict})
    found = [scores["score"], *scores["columns"].values()]
    for number, part in scores["folds"].items():
        if not re.fullmatch("[0-9]{1,6}", number) or not isinstance(part, dict):
            raise Fb3Error(f"{path}: folds: {number!r} is no fold's score; copy the run again")
        found.append(part.get("score"))
    if not all(isinstance(each, (float, int)) for each in found):
        raise Fb3Error(f"{path}: holds a score that is no number; copy the run again")
    return scores


def _is_numeric(cells: pd.Series) -> bool:
    """Numbers for the most part: one bad cell among scores must be named, not hide its column."""
    return np.isnan(to_floats(cells)).mean() < 0.5
