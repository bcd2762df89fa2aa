"""CSV files, read exactly as they are; every fault is named by file, row and column."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids
from fb3.errors import Fb3Error
from fb3.system.files import reading_utf8

FOLD_COLUMN = "fold"
LARGEST = 4 * 2**30  # bytes of a CSV; in memory its cells are up to four times as large
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_table(path: str | Path, wanted: Iterable[str], mend: str = "") -> pd.DataFrame:
    """Reads a CSV with every cell as text, exactly as it is: an essay that says "NA" stays an essay.

    Empty columns without a name at the right end are left out.

    Args:
        path: the file.
        wanted: columns that it must have.
        mend: end of the message where one is missing.

    Raises:
        Fb3Error: no such file, not UTF-8 (names the byte), not a CSV (names row and lines), a column missing or there
            twice.
    """
    path = Path(path)
    if not path.exists():
        if path.parent.is_file():
            raise Fb3Error(f"{path.parent}: is a file; give the folder that it is in")
        beside = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        raise Fb3Error(f"{path}: no such file; CSV files in {path.parent}: {beside or 'none'}")
    with reading_utf8(path, LARGEST) as lines:
        table = _parse(lines, path)
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise Fb3Error(f"{path}: no column {missing}; it has {list(table.columns)}, wanted {list(wanted)}{mend}")
    return table


def _parse(lines: Iterable[str], path: Path) -> pd.DataFrame:
    """Uses the csv module, because pandas fills short rows and cuts long ones without a word."""
    csv.field_size_limit(2**31 - 1)
    rows = _Rows(lines)
    try:
        found = iter(rows)
        header = next(found, None)
        if header is None:
            raise Fb3Error(f"{path}: not a CSV table (the file is empty); download it again")
        names = _checked_names(header, path)
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


class _Rows:
    """The rows of a CSV without its blank lines. Unlike the csv module it knows on which lines a row stands."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._line = lines, ""
        self._number, self._first, self._last = 0, 1, 0  # the row's number (header: 0), first and last line

    def __iter__(self) -> Iterator[list[str]]:
        for row in csv.reader(self._counted(), strict=True):
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
        mend = "a cell with a comma, a quote or a line end in it stands in quotes, with its own quotes doubled"
        if '\\"' in self._line:
            mend = r'a quote in a cell is written "", not \"; write the file anew'
        return Fb3Error(f"{path}: {row} {what} ({place}); {mend}")


def _checked_names(header: list[str], path: Path) -> list[str]:
    """Drops empty names at the end, which spreadsheets leave where a column was deleted; refuses a broken header."""
    if "\0" in "".join(header):
        raise Fb3Error(f"{path}: has NULs in its header; is it UTF-16? Save it as UTF-8")
    if other := next((words for mark, words in _SEPARATORS.items() if len(header) == 1 and mark in header[0]), None):
        raise Fb3Error(f"{path}: its columns are separated by {other}; save it with commas")
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
