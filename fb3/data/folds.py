"""The split into folds, stratified on all targets. Only this module knows iterative-stratification."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, read_table, whole_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe

_MOST_SCORES = 20  # distinct scores of a column up to which each is a label of its own
_BINS = 10  # bins of a column with more distinct scores, before the outer ones are halved


class FoldSplit(NamedTuple):
    """fold: the number. train_rows, valid_rows: positions in the essays' table."""

    fold: int
    train_rows: np.ndarray
    valid_rows: np.ndarray


def take_sample(essays: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The essays that a recipe trains on: all, or a random sample of `data.sample`."""
    size = recipe.data.sample
    if size is None or size >= len(essays):
        return essays
    rows = np.random.default_rng(recipe.folds.seed).permutation(len(essays))[:size]
    return essays.iloc[np.sort(rows)].reset_index(drop=True)


def make_folds(essays: pd.DataFrame, recipe: Recipe) -> list[FoldSplit]:
    """Splits essays, stratified on all target columns (Sechidis et al. 2011); a `fold` column is honoured instead.

    Args:
        essays: the table of `read_essays`, with scores.
        recipe: its `folds` group says how many folds, or how large a holdout.

    Raises:
        Fb3Error: more folds than essays, a fold that stays empty, or both a `fold` column and a holdout.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit  # sklearn: seconds

    count, seed, holdout = recipe.folds.count, recipe.folds.seed, recipe.folds.holdout
    rows = np.arange(len(essays))
    if FOLD_COLUMN in essays.columns:
        if holdout is not None:
            raise Fb3Error("folds.holdout is set and the essays have a `fold` column; drop one of the two")
        return splits_from_numbers(essays[FOLD_COLUMN].to_numpy())
    if holdout is None and count > len(essays):
        raise Fb3Error(f"folds.count={count}: more folds than essays ({len(essays)}); give at most {len(essays)}")
    targets = essays[list(recipe.data.target_columns)].to_numpy()
    labels = _as_classes(targets, round(1 / min(holdout, 1 - holdout)) if holdout else count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if holdout is not None:
            if not 1 <= round(holdout * len(essays)) < len(essays):
                raise Fb3Error(f"folds.holdout={holdout}: leaves one side of {len(essays)} essays empty")
            splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=holdout, random_state=seed)
        else:
            splitter = MultilabelStratifiedKFold(n_splits=count, shuffle=True, random_state=seed)
        splits = [FoldSplit(n, t, v) for n, (t, v) in enumerate(splitter.split(rows, labels))]
    if empty := [split.fold for split in splits if not len(split.valid_rows) or not len(split.train_rows)]:
        raise Fb3Error(f"folds {empty} got no essay out of {len(essays)}; give fewer folds with folds.count")
    return splits


def _as_classes(targets: np.ndarray, parts: int) -> np.ndarray:
    """Binary labels (N, L) of targets (N, K): one for each distinct score, or bin of scores, of each column.

    The stratifier balances labels. `parts`: how many the rows are split into.
    """
    columns = [_binned(column, parts) for column in targets.T]
    labels = [(column[:, None] == np.unique(column)).astype(int) for column in columns]
    if len(labels) == 1 and labels[0].shape[1] == 1:  # a single score: the stratifier wants two labels at least
        labels.append(np.zeros((len(targets), 1), int))
    return np.concatenate(labels, axis=1)


def _binned(column: np.ndarray, parts: int) -> np.ndarray:
    """The column itself, or its bins' numbers where it has too many distinct scores for a label each, (N,).

    The bins hold equally many rows. The outer two are halved again and again, until a piece has one row for each part:
    a few extreme rows make the mean and the spread of a skewed column, so every part needs its share of them.
    """
    if len(np.unique(column)) <= _MOST_SCORES:
        return column
    rows = len(column)
    cuts = [rows * n // _BINS for n in range(1, _BINS)]
    tail = cuts[0]
    while (tail := tail // 2) >= parts:
        cuts += [tail, rows - tail]
    cuts = [cut for cut in cuts if parts <= cut <= rows - parts]
    return np.searchsorted(np.unique(np.sort(column)[cuts]), column, side="right")


def splits_from_numbers(numbers: np.ndarray) -> list[FoldSplit]:
    """Splits by each essay's fold number; −1 marks an essay that every fold trains on, as with a holdout."""
    rows = np.arange(len(numbers))
    return [FoldSplit(int(n), rows[numbers != n], rows[numbers == n]) for n in sorted(set(numbers[numbers >= 0]))]


def fold_table(essays: pd.DataFrame, splits: list[FoldSplit], id_column: str) -> pd.DataFrame:
    """The content of folds.csv: each essay's id and the fold that validates on it, −1 for none."""
    numbers = np.full(len(essays), -1)
    for split in splits:
        numbers[split.valid_rows] = split.fold
    return pd.DataFrame({id_column: essays[id_column].to_numpy(), FOLD_COLUMN: numbers})


def read_folds(path: Path, essays: pd.DataFrame, id_column: str) -> list[FoldSplit]:
    """The splits of a folds.csv, matched to the essays by id; an Fb3Error where it cannot be read or ids differ."""
    table = read_table(path, [id_column, FOLD_COLUMN])
    check_ids(table[id_column], path)
    numbers = np.array(whole_numbers(table[FOLD_COLUMN], path))
    rows = match_ids(table[id_column], essays[id_column], path, "the essays", "; train into another folder")
    return splits_from_numbers(numbers[rows])
