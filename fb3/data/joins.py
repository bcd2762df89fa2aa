"""A split's table with the columns that further tables and folders of texts give, joined by a key, and own steps."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.data.column_guess import fitting_overrides
from fb3.data.frames.frame_references import find_frames, no_frames
from fb3.data.prepare import prepare_table
from fb3.data.tables import check_columns_there, read_table
from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings, JoinSettings, Split
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.system.compressed_files import stored_file
from fb3.system.files import read_utf8


class Joined(NamedTuple):
    """A join that was made, and the columns that it gave."""

    settings: JoinSettings
    columns: list[str]


def read_split(
    path: str | Path,
    data: DataSettings,
    split: Split,
    wanted: Sequence[str],
    mend: str = "",
    *,
    folder: Path | None = None,
    faults: list[str] | None = None,
) -> pd.DataFrame:
    """Reads a split's table, joins the further columns that are wanted and that it lacks, and runs data.prepare on it.

    Args:
        path: the table.
        data: names the columns, the joins and the file of own steps.
        split: the split whose files are joined.
        wanted: columns that the result must have.
        mend: end of the message where one is missing; the overrides that would fit are added.
        folder: the competition's, from which joined files and frames are named; none: the one that `path` is in by its
            name in data.files.
        faults: gets the messages about keys that the joined file lacks, whose cells then stay empty, and about frames
            that cannot be read; none: these are errors.

    Returns:
        The table of `read_table`, in its order, with the joined columns at its end; or what data.prepare makes of it.
        A further column holds references to frames, where the recipe has data.frames.

    Raises:
        Fb3Error: see `read_table` and `prepare_table`; also a key that is missing in the joined file or there twice, a
            name that is a column of both, a folder's key that is no plain file name.
    """
    path, wanted = Path(path), [name for name in wanted if name != FRAMES_COLUMN]
    table = read_joined(path, data, split, wanted, mend, folder=folder, faults=faults)[0]
    if data.prepare:
        table = _prepared(table, path, data, split, wanted, mend, folder)
    if data.frames:
        place, ids = folder or _folder(path, data, split), table[data.id_column].tolist()
        try:
            table[FRAMES_COLUMN] = find_frames(ids, data.frames, place, split == "train")
        except Fb3Error as error:
            if faults is None:
                raise
            faults.append(f"{error}. All items are read as ones without frames")
            table[FRAMES_COLUMN] = no_frames(ids, data.frames, place)
    return table


def _folder(path: Path, data: DataSettings, split: Split) -> Path:
    """The competition's folder: above the table's where its name in data.files has folders in it."""
    above = PurePosixPath(getattr(data.files, split)).parent.parts
    named = above and path.parent.parts[-len(above) :] == above
    return path.parents[len(above)] if named else path.parent


def _prepared(
    table: pd.DataFrame,
    path: Path,
    data: DataSettings,
    split: Split,
    wanted: Sequence[str],
    mend: str,
    folder: Path | None,
) -> pd.DataFrame:
    file = Path(data.prepare)
    mended = partial(_mend, data=data, folder=folder or _folder(path, data, split), wanted=wanted, begin=mend)
    if split == "test":
        check_columns_there(table, [data.id_column], path, mended)
    table = prepare_table(table, file, split, data.id_column, path)
    check_columns_there(table, wanted, f"{path}, as {file} returns it", mended)
    return table


def read_joined(
    path: str | Path,
    data: DataSettings,
    split: Split,
    wanted: Sequence[str],
    mend: str = "",
    *,
    folder: Path | None = None,
    faults: list[str] | None = None,
) -> tuple[pd.DataFrame, list[Joined]]:
    """The table of `read_split` before data.prepare, and the joins that were made."""
    path, made = Path(path), []
    folder = folder or _folder(path, data, split)
    table = read_table(path, [], key=f"data.files.{split}")
    for join in data.files.joins:
        source = folder / join.name(split)
        needed = _needed(table, join, source, data, split, wanted)
        if joined := _given(table, join, source, path, needed, faults):
            made.append(Joined(join, list(joined)))
            table = table.assign(**joined)
    if not data.prepare:
        check_columns_there(table, wanted, path, partial(_mend, data=data, folder=folder, wanted=wanted, begin=mend))
    return table, made


def _needed(
    table: pd.DataFrame, join: JoinSettings, source: Path, data: DataSettings, split: Split, wanted: Sequence[str]
) -> set[str] | None:
    """The columns for which a join is made; none: whatever it gives.

    Nobody knows which columns data.prepare reads, so for it every join is made, of test every one that can be: a table
    of groups may be there for training alone.
    """
    if not data.prepare:
        return {*wanted, *(other.on for other in data.files.joins)} - {*table.columns}
    if split == "train" or (join.on in table.columns and stored_file(source).exists()):
        return None
    return {*wanted} & {*([join.into] if join.folder else join.columns or ())}


def joined_files(data: DataSettings, folder: Path, split: Split) -> dict[str, Path]:
    """The files and folders that joins name for a split, by their names in the recipe; some may be absent."""
    return {join.name(split): stored_file(folder / join.name(split)) for join in data.files.joins}


def _mend(table: pd.DataFrame, data: DataSettings, folder: Path, wanted: Sequence[str], begin: str) -> str:
    try:
        sample = list(read_table(folder / data.files.sample, []).columns) if data.files.sample else []
    except Fb3Error:
        sample = []
    return begin + fitting_overrides(table, data, wanted, sample)


def _given(
    table: pd.DataFrame, join: JoinSettings, source: Path, path: Path, needed: set[str] | None, faults: list[str] | None
) -> Mapping[str, np.ndarray]:
    """The columns that a join gives, a cell for each row of the table; none where no column of them is needed.

    needed: names of columns; none: all are.
    """
    known = [join.into] if join.folder else join.columns
    if needed is not None and not (needed & {*known} if known else needed):
        return {}
    further = None if join.folder else read_table(source, [join.on, *(join.columns or ())])
    columns = list(known or [name for name in further.columns if name != join.on])
    if needed is not None and not needed & {*columns}:
        return {}
    if join.on not in table.columns:
        raise Fb3Error(
            f"{path}: no column {join.on!r}, the key to {source}; it has {list(table.columns)}: change data.files.joins"
        )
    if twice := [name for name in columns if name in table.columns]:
        mend = "another name for into" if join.folder else "the columns to take, without these, in columns"
        raise Fb3Error(f"{source}: gives {twice}, which {path} has too; name {mend} (data.files.joins)")
    if join.folder:
        return {join.into: _texts(table[join.on], source, path, faults)}
    rows = _rows(table[join.on], further[join.on], source, path, faults)
    return {name: np.append(further[name].to_numpy(), "")[rows] for name in columns}  # row -1: the empty cell


def _rows(keys: pd.Series, known: pd.Series, source: Path, path: Path, faults: list[str] | None) -> np.ndarray:
    """The row of each essay's key in the joined file, (N,); -1 where it has none and `faults` takes the message."""
    again = np.flatnonzero(known.duplicated())
    if len(again):
        raise Fb3Error(
            f"{source}: {len(again)} keys of column {known.name} stand there again, first {known.iloc[again[0]]!r} in "
            f"row {again[0] + 1}; leave one row a key, or join by another column (data.files.joins)"
        )
    row_of = {key: row for row, key in enumerate(known)}
    rows = np.array([row_of.get(key, -1) for key in keys], np.int64)
    _tell_missing(keys, np.flatnonzero(rows < 0), f"is no {known.name} of {source}", path, faults)
    return rows


def _texts(keys: pd.Series, source: Path, path: Path, faults: list[str] | None) -> np.ndarray:
    """The text in the folder for each key, (N,), each file read once."""
    texts: dict[str, str | None] = {}
    for row, key in enumerate(keys):
        if key in texts:
            continue
        if {key} != {PurePosixPath(key).name, PureWindowsPath(key).name} or key in ("", "..") or "\0" in key:
            raise Fb3Error(f"{path}: {key!r} in row {row + 1}, column {keys.name}, is no name of a file in {source}")
        file = source / f"{key}.txt"
        texts[key] = read_utf8(file) if file.exists() else None
    missing = np.flatnonzero([texts[key] is None for key in keys])
    _tell_missing(keys, missing, f"has no file of its name (KEY.txt) in {source}", path, faults)
    return np.array([texts[key] or "" for key in keys], object)


def _tell_missing(keys: pd.Series, rows: np.ndarray, what: str, path: Path, faults: list[str] | None) -> None:
    if not len(rows):
        return
    message = (
        f"{path}: {keys.iloc[rows[0]]!r} in row {rows[0] + 1}, column {keys.name}, {what} ({len(rows)} such rows); "
        "take both from the same download, or change data.files.joins"
    )
    if faults is None:
        raise Fb3Error(message)
    faults.append(f"{message}. These cells stay empty")
