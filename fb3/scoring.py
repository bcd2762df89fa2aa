"""Scores of files: predictions against truths, matched by id; and those of a run, from its oof.csv."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error
from fb3.essays import FOLD_COLUMN, check_ids, read_numbers, read_table
from fb3.files import read_json
from fb3.layout import OOF
from fb3.metrics import Score, rmse_columns
from fb3.recipe import Recipe

TRUTH = "true_"  # prefix of the truths' columns in oof.csv


def score_files(predictions: str | Path, truth: str | Path, subset: bool = False) -> Score:
    """MCRMSE of a CSV of predictions against a CSV of truths.

    The id is the first column of `predictions`; the targets are the truth's numeric columns, `fold` apart. A run's
    oof.csv against train.csv gives the CV.

    Args:
        predictions: ids and one column a target; other columns are ignored.
        truth: ids, targets, perhaps texts.
        subset: score the predicted ids only, where the truth has more.

    Raises:
        Fb3Error: a missing column, duplicate or empty ids, ids that do not match, a cell that is no number.
    """
    predictions, truth = Path(predictions), Path(truth)
    predicted = read_table(predictions, [])
    identifier = predicted.columns[0]
    true = read_table(truth, [])
    if identifier not in true.columns:
        has = f"it has {list(true.columns)}"
        raise Fb3Error(f"{truth}: no column {identifier!r}, which is the first of {predictions}, for the ids; {has}")
    check_ids(predicted[identifier], predictions)
    check_ids(true[identifier], truth)
    columns = [c for c in true.columns if c not in {identifier, FOLD_COLUMN} and _is_numeric(true[c])]
    if not columns:
        raise Fb3Error(f"{truth}: no column of scores in it; it has {list(true.columns)}")
    if missing := [c for c in columns if c not in predicted.columns]:
        raise Fb3Error(f"{predictions}: no column {missing}, which {truth} has; it has {list(predicted.columns)}")
    have, want = set(predicted[identifier]), set(true[identifier])
    extra, absent = sorted(have - want), sorted(want - have)
    if extra or (absent and not subset):
        mend = "; --subset scores what is predicted" if not extra else ""
        raise Fb3Error(
            f"{len(extra)} ids only in {predictions} {extra[:5]}, {len(absent)} only in {truth} {absent[:5]}{mend}"
        )
    true = true.set_index(identifier).loc[predicted[identifier]]
    each = rmse_columns(
        _numbers(true.reset_index(), columns, truth, identifier), _numbers(predicted, columns, predictions, identifier)
    )
    return Score(float(each.mean()), dict(zip(columns, each.tolist(), strict=True)))


def scores_of(run: Path, recipe: Recipe) -> dict:
    """The content of scores.json, from oof.csv alone: the score of all rows, and of each fold."""
    columns = list(recipe.data.target_columns)
    table = read_numbers(run / OOF, recipe.data.id_column, [TRUTH + column for column in columns] + columns)

    def score(rows: pd.DataFrame) -> dict:
        each = rmse_columns(rows[[TRUTH + c for c in columns]].to_numpy(), rows[columns].to_numpy())
        return {
            "score": float(each.mean()),
            "columns": dict(zip(columns, each.tolist(), strict=True)),
            "essays": len(rows),
        }

    folds = {str(n): score(rows) for n, rows in table.groupby("fold")}
    total = int((read_table(run / "folds.csv", [FOLD_COLUMN])[FOLD_COLUMN] != "-1").sum())
    return {**score(table), "complete": len(table) == total, "folds": folds}


def read_scores(path: Path) -> dict:
    """scores.json, as `scores_of` makes it.

    Raises:
        Fb3Error: it is broken, or something else.
    """
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
    return pd.to_numeric(cells, errors="coerce").notna().mean() > 0.5


def _numbers(table: pd.DataFrame, columns: list[str], path: Path, identifier: str) -> np.ndarray:
    """The cells of some columns as numbers, (N, K).

    Raises:
        Fb3Error: a cell is none, or not finite; names it.
    """
    values = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise Fb3Error(
            f"{path}: {table[columns[column]].iloc[row]!r} is no number, {identifier} {table[identifier].iloc[row]}, "
            f"column {columns[column]}"
        )
    return values
