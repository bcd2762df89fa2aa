"""The labels that every fold gets its share of, and the assignment of whole groups to folds by their labels."""

import numpy as np
import pandas as pd

from fb3.recipe import Recipe

_MOST_VALUES = 20  # distinct numbers of a column up to which each is a label of its own
_BINS = 10  # bins of a column with more distinct numbers, before the outer ones are halved
_MOST_LABELS = 100  # labels of a text column, and label sets: the stratifier's time grows with their square
_MOST_PASSES = 8  # over all groups; few still move after the third


def stratification_labels(essays: pd.DataFrame, recipe: Recipe) -> np.ndarray:
    """One binary label for each value, or bin of values, of each column that the recipe stratifies by.

    `folds.stratify=label_sets` adds one for each frequent combination of them. A rare combination gets no label: its
    essays are still spread by their single labels.

    Args:
        essays: the table of `read_essays`, N rows.
        recipe: its `folds` group names the columns and the number of parts.

    Returns:
        (N, labels of all columns) of 0 and 1; without labels for `folds.stratify=none`.
    """
    folds = recipe.folds
    if folds.stratify == "none":
        return np.zeros((len(essays), 0), int)
    columns = folds.stratify_columns or recipe.data.target_columns
    parts = round(1 / min(folds.holdout, 1 - folds.holdout)) if folds.holdout else folds.count
    values = [_as_classes(essays[column].to_numpy(), parts) for column in columns]
    if folds.stratify == "label_sets":
        values.append(_label_sets(values, parts))
    labels = [(column[:, None] == np.unique(column[column >= 0])).astype(int) for column in values]
    return np.concatenate(labels, axis=1)


def _as_classes(column: np.ndarray, parts: int) -> np.ndarray:
    """The class of each cell, (N,): its rank among the distinct values, its bin, or for texts its rank by frequency."""
    if column.dtype == object:
        return _most_frequent(pd.factorize(column)[0])
    distinct, ranks = np.unique(column, return_inverse=True)
    return ranks if len(distinct) <= _MOST_VALUES else _binned(column, parts)


def _most_frequent(codes: np.ndarray) -> np.ndarray:
    """Codes by frequency; all but the most frequent share the last one."""
    order = np.argsort(-np.bincount(codes), kind="stable")
    return np.minimum(np.argsort(order)[codes], _MOST_LABELS - 1)


def _label_sets(values: list[np.ndarray], parts: int) -> np.ndarray:
    """The code of each row's combination of classes, (N,); −1 where it is rare: fewer rows than parts."""
    _, codes, counts = np.unique(np.stack(values, axis=1), axis=0, return_inverse=True, return_counts=True)
    codes = codes.reshape(-1)  # numpy 2.0 returns (N, 1)
    frequent = np.argsort(-counts, kind="stable")[:_MOST_LABELS]
    return np.where(np.isin(codes, frequent) & (counts[codes] >= parts), codes, -1)


def _binned(column: np.ndarray, parts: int) -> np.ndarray:
    """The number of each cell's quantile bin, (N,).

    The bins hold equally many rows. The outer two are halved again and again, until a piece has one row for each part:
    a few extreme rows make the mean and the spread of a skewed column, so every part needs its share of them.
    """
    rows = len(column)
    cuts = [rows * n // _BINS for n in range(1, _BINS)]
    tail = cuts[0]
    while (tail := tail // 2) >= parts:
        cuts += [tail, rows - tail]
    cuts = [cut for cut in cuts if parts <= cut <= rows - parts]
    return np.searchsorted(np.unique(np.sort(column)[cuts]), column, side="right")


def assign_groups(groups: np.ndarray, labels: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """The part of each row, so that no group is in two parts and each part has about its share of every label.

    Greedy, the largest group first, as scikit-learn's StratifiedGroupKFold, but over the labels of several columns: a
    group goes where Pearson's chi-square between the counts and the wanted counts becomes lowest. Each count is that of
    a label, or of all rows. At first it goes only where there is room for it, if there is any: one large group would
    fill a small holdout otherwise. Further passes move single groups as long as that lowers the chi-square.

    Args:
        groups: (N,) codes of groups, from 0 up without gaps.
        labels: (N, L) of 0 and 1.
        shares: (parts,) of the rows, summing to 1.
        seed: decides the order of groups of one size.

    Returns:
        (N,) numbers of parts. With equal shares and at least as many groups as parts none is empty: an empty part is
        always the one that lacks most.
    """
    counts = np.stack([np.bincount(groups), *(np.bincount(groups, label) for label in labels.T)], axis=1).astype(float)
    totals = counts.sum(axis=0)
    lacking = np.outer(shares, totals)  # the counts that each part still wants
    weights = 1 / lacking
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled, 0], kind="stable")]
    parts = np.full(len(counts), -1)
    for _ in range(_MOST_PASSES):
        before = parts.copy()
        for group in order:
            if parts[group] >= 0:
                lacking[parts[group]] += counts[group]
            # (lacking − count)² − lacking², rounded so that equal costs are equal on every machine
            costs = ((counts[group] - 2 * lacking) * counts[group] * weights).sum(axis=1).round(9)
            if parts[group] < 0:
                fits = lacking[:, 0] >= counts[group, 0]
                parts[group] = np.where(fits | ~fits.any(), costs, np.inf).argmin()
            elif costs.min() < costs[parts[group]]:
                parts[group] = costs.argmin()
            lacking[parts[group]] -= counts[group]
        if np.array_equal(parts, before):
            break
    return parts[groups]
