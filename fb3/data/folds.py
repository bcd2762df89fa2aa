"""The split into folds: stratified, by groups or by chance. Only this module knows iterative-stratification."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.stratification import assign_groups, stratification_labels
from fb3.data.tables import FOLD_COLUMN, read_table, whole_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.data import FoldsSettings


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
    """Splits essays as the recipe's `folds` group says; a `fold` column is honoured instead.

    Args:
        essays: the table of `read_essays`, with scores and the columns that the `folds` group names.
        recipe: its `folds` group says how many folds, or how large a holdout, and what stays together or is balanced.

    Raises:
        Fb3Error: more folds than essays or groups, a fold that stays empty, a `fold` column with a holdout, or one that
            splits a group.
    """
    folds = recipe.folds
    if FOLD_COLUMN in essays.columns:
        if folds.holdout is not None:
            raise Fb3Error("folds.holdout is set and the essays have a `fold` column; drop one of the two")
        numbers = essays[FOLD_COLUMN].to_numpy()
        source = f"{recipe.data.files.train}'s `fold` column"
        refuse_split_groups(essays, numbers, recipe, source, "mend it, or leave it out")
        return splits_from_numbers(numbers)
    if folds.holdout is None and folds.count > len(essays):
        raise Fb3Error(f"folds.count={folds.count}: more folds than essays ({len(essays)}); give at most {len(essays)}")
    if folds.holdout is not None and not 1 <= round(folds.holdout * len(essays)) < len(essays):
        raise Fb3Error(f"folds.holdout={folds.holdout}: leaves one side of {len(essays)} essays empty")
    if folds.group_column:
        numbers = _grouped(essays, recipe)
    elif folds.stratify == "none":
        numbers = _shuffled(len(essays), folds)
    else:
        numbers = _stratified(stratification_labels(essays, recipe), folds)
    rows = np.arange(len(essays))
    count = folds.count if folds.holdout is None else 1
    splits = [FoldSplit(n, rows[numbers != n], rows[numbers == n]) for n in range(count)]
    if empty := [split.fold for split in splits if not len(split.valid_rows) or not len(split.train_rows)]:
        raise Fb3Error(f"folds {empty} got no essay out of {len(essays)}; give fewer folds with folds.count")
    return splits


def _stratified(labels: np.ndarray, folds: FoldsSettings) -> np.ndarray:
    """Fold numbers by iterative stratification (Sechidis et al. 2011), (N,); 0 for a holdout and −1 for the rest.

    Args:
        labels: (N, L) of 0 and 1.
        folds: the settings.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit  # sklearn: seconds

    if labels.shape[1] == 1:  # a single value: the stratifier wants two labels at least
        labels = np.pad(labels, ((0, 0), (0, 1)))
    if folds.holdout is None:
        splitter = MultilabelStratifiedKFold(n_splits=folds.count, shuffle=True, random_state=folds.seed)
    else:
        splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=folds.holdout, random_state=folds.seed)
    numbers = np.full(len(labels), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for number, (_, rows) in enumerate(splitter.split(labels, labels)):
            numbers[rows] = number
    return numbers


def _shuffled(count: int, folds: FoldsSettings) -> np.ndarray:
    """Fold numbers by chance, in even folds, (N,); 0 for a holdout and −1 for the rest."""
    places = np.random.default_rng(folds.seed).permutation(count)
    if folds.holdout is None:
        return places % folds.count
    return np.where(places < round(folds.holdout * count), 0, -1)


def _grouped(essays: pd.DataFrame, recipe: Recipe) -> np.ndarray:
    """Fold numbers that keep groups together, (N,); 0 for a holdout and 1 for the rest."""
    folds, column = recipe.folds, recipe.folds.group_column
    groups, names = pd.factorize(essays[column])
    if len(names) < (folds.count if folds.holdout is None else 2):
        what = f"folds.count={folds.count}" if folds.holdout is None else f"folds.holdout={folds.holdout}"
        mend = f"give at most folds.count={len(names)}, or " if len(names) > 1 and folds.holdout is None else ""
        raise Fb3Error(
            f"{what}: column {column} has too few groups for it ({len(names)} in {len(essays)} essays); {mend}leave "
            "folds.group_column out"
        )
    shares = np.full(folds.count, 1 / folds.count)
    if folds.holdout is not None:
        shares = np.array([folds.holdout, 1 - folds.holdout])
    numbers = assign_groups(groups, stratification_labels(essays, recipe), shares, folds.seed)
    if len(set(numbers)) < len(shares):
        smallest = np.bincount(groups).min()
        raise Fb3Error(
            f"folds.holdout={folds.holdout}: no group of column {column} suits it, the smallest has {smallest} of "
            f"{len(essays)} essays; give about {smallest / len(essays):.2f}, or folds.count instead"
        )
    return numbers


def refuse_split_groups(essays: pd.DataFrame, numbers: np.ndarray, recipe: Recipe, source: str, mend: str) -> None:
    """Refuses a split that has a group in two folds, where the recipe keeps groups together.

    Args:
        essays: the table of `read_essays`.
        numbers: (N,) the fold that validates on each; −1 for none.
        recipe: names the column of groups.
        source: where the numbers stand, for the error.
        mend: end of the message.

    Raises:
        Fb3Error: names the first such group.
    """
    if not (column := recipe.folds.group_column):
        return
    pairs = pd.DataFrame({"group": essays[column].to_numpy(), "fold": numbers}).drop_duplicates()
    twice = pairs["group"][pairs["group"].duplicated()]
    if len(twice):
        there = sorted(pairs["fold"][pairs["group"] == twice.iloc[0]].tolist())
        raise Fb3Error(
            f"{source}: {twice.nunique()} groups of folds.group_column={column} are in more than one fold, first "
            f"{str(twice.iloc[0])[:60]!r} in {there}; {mend}"
        )


def describe_groups(essays: pd.DataFrame, splits: list[FoldSplit], column: str) -> str:
    """One line: how many groups, the largest, and how many essays each fold validates on."""
    sizes = essays[column].value_counts()
    folds = ", ".join(str(len(split.valid_rows)) for split in splits)
    return (
        f"folds.group_column={column}: {len(sizes)} groups in {len(essays)} essays, the largest of {sizes.iloc[0]} "
        f"({str(sizes.index[0])[:60]!r}); to validate: {folds} essays"
    )


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


def split_hash(ids: Sequence[str], numbers: Sequence[int]) -> str:
    """The hash of a split, whatever the order of its N essays: each id and the fold that validates on it."""
    lines = sorted(f"{identifier}\t{number}" for identifier, number in zip(ids, numbers, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_folds(path: Path, essays: pd.DataFrame, id_column: str) -> list[FoldSplit]:
    """The splits of a folds.csv, matched to the essays by id; an Fb3Error where it cannot be read or ids differ."""
    table = read_table(path, [id_column, FOLD_COLUMN])
    check_ids(table[id_column], path)
    numbers = np.array(whole_numbers(table[FOLD_COLUMN], path))
    rows = match_ids(table[id_column], essays[id_column], path, "the essays", "; train into another folder")
    return splits_from_numbers(numbers[rows])
