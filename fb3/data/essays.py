"""Essays, and their scores where there are any, read from a CSV and checked."""

from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids
from fb3.data.joins import joined_files, read_split
from fb3.data.tables import FOLD_COLUMN, parse_numbers, to_floats
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.data import DataSettings, FoldsSettings, Split
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import PSEUDO
from fb3.targets.target import Target


def read_essays(
    path: str | Path,
    data: DataSettings,
    target: Target | None = None,
    folds: FoldsSettings | None = None,
    *,
    split: Split = "train",
    folder: Path | None = None,
) -> pd.DataFrame:
    """Reads essays, with their targets where one is given, and a `fold` column where the file has one.

    Args:
        path: train.csv or test.csv.
        data: names the columns.
        target: says what its columns may hold; none: no targets are read.
        folds: names further columns that the split needs; none: no such columns are read.
        split, folder: the split whose files data.files.joins means, and their folder; none: beside `path`.

    Returns:
        Id and text as str, targets as float32 or, where they are labels, as str, weights as float64, `fold` as int,
        groups as str, a column to stratify by as float64 where it holds numbers alone and as str otherwise, references
        to frames; other columns are left out.

    Raises:
        Fb3Error: see `read_split`; also empty or duplicate ids, targets that are no number or out of range, and empty
            cells in a column of the split.
    """
    path = Path(path)
    targets = list(target.labels) if target else []
    mend = "; data.id_column, data.text_column and data.target_columns say what they are called"
    further = folds.columns() if folds else ()
    weights = [data.weight_column] if target and data.weight_column else []
    if further:
        mend += ", folds.group_column and folds.stratify_columns which columns the split takes"
    wanted = list(dict.fromkeys([data.id_column, *data.text_columns(), *targets, *weights, *further]))
    table = read_split(path, data, split, wanted, mend, folder=folder)
    check_ids(table[data.id_column], path)
    essays = table[[data.id_column, *data.input_columns()]].copy()
    if target:
        numbers = parse_numbers(table, data.id_column, targets, path).astype(np.float32) if target.numeric else None
        essays[targets] = table[targets] if numbers is None else numbers
        target.check(essays, path)
        for column in weights:
            essays[column] = _weights(table, data, path)
        if FOLD_COLUMN in table.columns:
            essays[FOLD_COLUMN] = _fold_numbers(table, data, path)
    for column in further:
        _refuse_empty_cells(table, column, data, path)
        if column not in essays.columns:
            numbers = to_floats(table[column])
            as_numbers = column != folds.group_column and np.isfinite(numbers).all()
            essays[column] = numbers if as_numbers else table[column]
    return essays


def training_files(recipe: Recipe, data: Path) -> dict[str, Path]:
    """The files that a run trains on, each by the name of its hash in environment.json."""
    uda, joined = recipe.task.uda, joined_files(recipe.data, data, "train")
    files = {"train_sha256": data / recipe.data.files.train} | ({"unlabelled_sha256": data / uda.file} if uda else {})
    frames = {name: data / name for name in (recipe.data.frames.files if recipe.data.frames else ())}
    further = {f"{name}_sha256": path for name, path in {**joined, **frames}.items() if path.exists()}
    own = {"prepare_sha256": Path(recipe.data.prepare)} if recipe.data.prepare else {}
    labels = {"pseudo_sha256": Path(recipe.pseudo.folder) / PSEUDO} if recipe.pseudo else {}
    return {key: stored_file(path) for key, path in files.items()} | further | own | labels


def _refuse_empty_cells(table: pd.DataFrame, column: str, data: DataSettings, path: Path) -> None:
    empty = np.flatnonzero(table[column].str.strip() == "")
    if len(empty):
        raise Fb3Error(
            f"{path}: {len(empty)} cells of column {column} are empty, first in row {empty[0] + 1} ({data.id_column} "
            f"{table[data.id_column].iloc[empty[0]]}); the split needs them: fill them in, or leave the column out of "
            "folds.group_column and folds.stratify_columns"
        )


def _weights(table: pd.DataFrame, data: DataSettings, path: Path) -> np.ndarray:
    mend = "; data.weight_column names the weights: fill them in, or leave it out"
    weights = parse_numbers(table, data.id_column, [data.weight_column], path, mend)[:, 0]
    if len(bad := np.flatnonzero(weights < 0)):
        raise Fb3Error(
            f"{path}: {len(bad)} weights are below 0, first {weights[bad[0]]:g} in row {bad[0] + 1} ({data.id_column} "
            f"{table[data.id_column].iloc[bad[0]]}), column {data.weight_column}{mend}"
        )
    if not weights.any():
        raise Fb3Error(f"{path}: column {data.weight_column} holds nothing but 0{mend}")
    return weights


def _fold_numbers(table: pd.DataFrame, data: DataSettings, path: Path) -> np.ndarray:
    folds = parse_numbers(table, data.id_column, [FOLD_COLUMN], path)[:, 0]
    found = np.unique(folds).tolist()
    if len(found) < 2 or found != list(range(len(found))):
        got = ", ".join(f"{number:g}" for number in found[:10])
        raise Fb3Error(f"{path}: column {FOLD_COLUMN} must hold whole numbers from 0 up, without gaps, got [{got}]")
    return folds.astype(int)
