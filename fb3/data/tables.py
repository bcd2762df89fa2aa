"""Tables of a competition, read exactly as they are; every fault is named by file, row and column."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids
from fb3.data.json_table import JSON, read_json_table, write_json_table
from fb3.data.parquet import read_parquet
from fb3.errors import Fb3Error, likeliest
from fb3.system.compressed_files import COMPRESSED, stored_file
from fb3.system.files import reading_utf8, write_csv

FOLD_COLUMN = "fold"
LARGEST = 4 * 2**30  # bytes of a table's file, unpacked; in memory its cells are up to four times as large
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
_SUFFIXES = {".csv", ".tsv", ".txt", ".parquet", *JSON, *COMPRESSED}


def read_table(
    path: str | Path, wanted: Iterable[str], mend: str | Callable[[pd.DataFrame], str] = "", *, key: str = ""
) -> pd.DataFrame:
    """Reads a table with every cell as text, exactly as it is: an essay that says "NA" stays an essay.

    The suffix names the form: .csv, .tsv with tabs, .json, .jsonl, each also compressed, as .gz or as the only table of
    a .zip; .parquet; a file of another suffix has tabs where its header has one. Where the file is absent, its
    compressed form beside it is read. Empty columns without a name at the right end are left out.

    Args:
        path: the file.
        wanted: columns that it must have.
        mend: end of the message where one is missing, or a function that makes it from the table.
        key: the recipe's key that names the file, which the message suggests to change where there is no such file.

    Raises:
        Fb3Error: no such file, not UTF-8 (names the byte), not a CSV (names row and lines), a column missing or there
            twice.
    """
    path = stored_file(Path(path))
    if not path.exists():
        raise _no_such_file(path, key)
    if path.suffix.lower() == ".parquet":
        table = read_parquet(path, LARGEST)
        _checked_names(list(table.columns), path, "")
    elif (form := _form(path)) in JSON:
        table = read_json_table(path, form, LARGEST)
    else:
        with reading_utf8(path, LARGEST) as lines:
            table = _parse(lines, path)
    check_columns_there(table, wanted, path, mend)
    return table


def check_columns_there(
    table: pd.DataFrame, wanted: Iterable[str], path: Path | str, mend: str | Callable[[pd.DataFrame], str]
) -> None:
    """Refuses a table that lacks a column; for the arguments see `read_table`."""
    if missing := [column for column in wanted if column not in table.columns]:
        end = mend if isinstance(mend, str) else mend(table)
        raise Fb3Error(f"{path}: no column {missing}; it has {list(table.columns)}, wanted {list(wanted)}{end}")


def _no_such_file(path: Path, key: str) -> Fb3Error:
    if path.parent.is_file():
        return Fb3Error(f"{path.parent}: is a file; give the folder that it is in")
    found = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    beside = [file.name for file in found if file.suffix.lower() in _SUFFIXES and file.is_file()]
    meant = [name for name in beside if path.stem in name] or likeliest(path.name, beside)
    below = [folder for folder in found if folder.is_dir() and stored_file(folder / path.name).is_file()]
    archives = [name for name in beside if name.lower().endswith(".zip") and not Path(name).with_suffix("").suffix]
    end = f"; there is one in {below[0]}" if below else f"; unpack {archives[0]} first" if archives else ""
    end = f"; {key}={' or '.join(meant[:3])} would fit" if key and meant else end
    return Fb3Error(f"{path}: no such file; tables in {path.parent}: {beside or 'none'}{end}")


def _form(path: Path) -> str:
    """The suffix that names a file's form, which stands before the one of a compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def _separator(path: Path, header: str) -> str:
    form = _form(path)
    return "\t" if form == ".tsv" or (form != ".csv" and "\t" in header) else ","


def _parse(lines: Iterable[str], path: Path) -> pd.DataFrame:
    """Uses the csv module, because pandas fills short rows and cuts long ones without a word."""
    csv.field_size_limit(2**31 - 1)
    lines = iter(lines)
    first = next(lines, "")
    separator = _separator(path, first)
    rows = _Rows(chain([first], lines), separator)
    try:
        found = iter(rows)
        header = next(found, None)
        if header is None:
            raise Fb3Error(f"{path}: not a CSV table (the file is empty); download it again")
        names = _checked_names(header, path, separator)
        table = []
        for row in found:
            if not len(names) <= len(row) <= len(header):
                raise rows.fault(path, f"has {len(row)} cells, the header {len(header)}")
            if any(row[len(names) :]):
                raise rows.fault(path, f"has a cell in column {len(names) + 1} or later, which has no name")
            table.append(row[: len(names)])
    except csv.Error as error:
        raise rows.fault(path, f"makes it not a CSV table: {error}") from None
    return pd.DataFrame(table, columns=names, dtype=object)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Writes a table of texts in the form that its suffix names, as `read_table` reads it."""
    if path.suffix.lower() == ".csv":
        write_csv(table, path)
    elif path.suffix.lower() == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix.lower() in JSON:
        write_json_table(table, path)
    else:
        table.to_csv(path, index=False, sep=_separator(path, "\t"), quoting=csv.QUOTE_ALL, lineterminator="\n")


class _Rows:
    """The rows of a CSV without its blank lines. Unlike the csv module it knows on which lines a row stands."""

    def __init__(self, lines: Iterable[str], separator: str) -> None:
        self._lines, self._separator, self._line = lines, separator, ""
        self._number, self._first, self._last = 0, 1, 0  # the row's number (header: 0), first and last line

    def __iter__(self) -> Iterator[list[str]]:
        for row in csv.reader(self._counted(), strict=True, delimiter=self._separator):
            if row:
                yield row
                self._number += 1
            self._first = self._last + 1

    def _counted(self) -> Iterator[str]:
        for line in self._lines:
            self._line, self._last = line, self._last + 1
            yield line

    def fault(self, path: Path, what: str) -> Fb3Error:
        """The error for the current row, with its lines numbered as in an editor, and the mend."""
        row = f"row {self._number}" if self._number else "the header"
        place = f"line {self._last}" if self._first >= self._last else f"lines {self._first}-{self._last}"
        sign = _SEPARATORS[self._separator].removesuffix("s")
        mend = f"a cell with a {sign}, a quote or a line end in it stands in quotes, with its own quotes doubled"
        if '\\"' in self._line:
            mend = r'a quote in a cell is written "", not \"; write the file anew'
        return Fb3Error(f"{path}: {row} {what} ({place}); {mend}")


def _checked_names(header: list[str], path: Path, separator: str) -> list[str]:
    """Drops empty names at the end, which spreadsheets leave where a column was deleted; refuses a broken header."""
    if "\0" in "".join(header):
        raise Fb3Error(f"{path}: has NULs in its header; is it UTF-16? Save it as UTF-8")
    others = (words for mark, words in _SEPARATORS.items() if mark != separator and mark in header[0])
    if separator and len(header) == 1 and (other := next(others, None)):
        raise Fb3Error(f"{path}: its columns are separated by {other}; save it with {_SEPARATORS[separator]}")
    names = header[: max((number for number, name in enumerate(header, 1) if name), default=len(header))]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise Fb3Error(f"{path}: column {twice} stands there more than once")
    return names


def whole_numbers(cells: pd.Series, path: Path) -> list[int]:
    """Fold numbers of folds.csv and oof.csv, whole numbers from −1 up; an Fb3Error names the first other cell."""
    bad = np.flatnonzero(~cells.str.fullmatch(r"-1|[0-9]{1,6}").to_numpy(bool))
    if len(bad):
        raise Fb3Error(
            f"{path}: {cells.iloc[bad[0]]!r} in row {bad[0] + 1}, column {cells.name}, is no fold's number; "
            "copy the run again"
        )
    return [int(cell) for cell in cells]


def parse_numbers(
    table: pd.DataFrame, id_column: str, columns: Sequence[str], path: Path, mend: str = ""
) -> np.ndarray:
    """Some columns of a table as numbers, exactly as they are written.

    Args:
        table: a table of `read_table`, or rows of it.
        id_column: names the row in the error.
        columns: K of them.
        path: the table's file, for the error.
        mend: end of the message, such as "; copy the run again".

    Returns:
        (N, K) float64, all finite.

    Raises:
        Fb3Error: a cell that is no finite number; names its row and column.
    """
    values = np.stack([to_floats(table[column]) for column in columns], axis=1)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        cell, number = table[columns[column]].iloc[row], table.index[row] + 1
        raise Fb3Error(
            f"{path}: {len(bad)} cells hold no number, first {cell!r} in row {number} "
            f"({id_column} {table[id_column].iloc[row]}), column {columns[column]}{mend}"
        )
    return values


def to_floats(cells: pd.Series) -> np.ndarray:
    """The number in each cell, (N,) float64; NaN where there is none. Read by Python, because pandas rounds."""
    return np.array([_to_float(cell) for cell in cells])


def _to_float(cell: str) -> float:
    """Python alone would also take 1_000 and the digits of other scripts."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        return math.nan


def read_numbers(path: Path, id_column: str, columns: Sequence[str]) -> pd.DataFrame:
    """Ids, fold numbers and float64 columns of a run's oof.csv.

    Raises:
        Fb3Error: see `read_table`, `check_ids`, `whole_numbers` and `parse_numbers`.
    """
    table = read_table(path, [id_column, FOLD_COLUMN, *columns])
    check_ids(table[id_column], path)
    numbers = parse_numbers(table, id_column, columns, path, "; copy the run again")
    out = pd.DataFrame({id_column: table[id_column], FOLD_COLUMN: whole_numbers(table[FOLD_COLUMN], path)})
    return pd.concat([out, pd.DataFrame(numbers, columns=list(columns))], axis=1)
