"""Own steps: the function prepare(table, split) of a Python file, which changes each table of essays (data.prepare).

The file is code that runs wherever the essays are read: in training, verification, packing and inference.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error, one_line
from fb3.recipe.data import Split
from fb3.system.files import read_utf8, sha256
from fb3.system.progress import say

_SHOWN = 3  # ids in a message
Prepare = Callable[[pd.DataFrame, Split], pd.DataFrame]


def prepare_table(table: pd.DataFrame, file: Path, split: Split, id_column: str, path: Path) -> pd.DataFrame:
    """The table that prepare() makes of a table of `read_table`, which stays as it is.

    Args:
        table: N rows, joined columns included, every cell a text.
        file: the Python file.
        split: train, where rows may come and go, or test, where the ids stay.
        id_column: names the ids; a test table has it.
        path: the table's own file, for the errors.

    Returns:
        Every cell as the text that a CSV would hold; of test N rows in the order of `table`.

    Raises:
        Fb3Error: the file cannot be loaded, or prepare() breaks, gives no table, or changes the ids of test.
    """
    function = load_prepare(file)
    try:
        found = function(table.copy(), split)
    except (Exception, SystemExit) as error:
        raise _broken(file, f"prepare() breaks on {path}, split {split!r}", error) from error
    if not isinstance(found, pd.DataFrame):
        raise Fb3Error(
            f"{file}: prepare() gives no DataFrame of {path}, but {type(found).__name__}; end it with `return table`"
        )
    cells = {str(name): _texts(column) for name, column in found.items()}
    if len(cells) < found.shape[1]:
        twice = [name for name, count in Counter(map(str, found.columns)).items() if count > 1]
        raise Fb3Error(f"{file}: prepare() gives {path} the columns {twice} more than once; drop or rename them")
    made = pd.DataFrame(cells, dtype=object)
    return _in_order(made, table, id_column, file, path) if split == "test" and id_column in made else made


def load_prepare(file: Path) -> Prepare:
    """The function prepare() of a Python file; a changed file is loaded anew."""
    file = file.absolute()
    if not file.is_file():
        raise Fb3Error(
            f"{file}: no such file; a path in data.prepare begins at the recipe's YAML file or the working directory"
        )
    return _load(file, sha256(file))


@cache
def _load(file: Path, digest: str) -> Prepare:
    say(f"runs {file}: code of one's own (data.prepare)")
    name = f"fb3_prepare_{digest[:8]}_{abs(hash(file))}"
    sys.modules[name] = module = module_from_spec(spec_from_file_location(name, file))  # dataclasses look it up there
    try:  # compiled here, because the spec's loader would write byte code beside the file
        exec(compile(read_utf8(file), str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _broken(file, "breaks when it is loaded", error) from error
    if not callable(function := getattr(module, "prepare", None)):
        raise Fb3Error(f"{file}: no function prepare in it; write def prepare(table, split): ... return table")
    return function


def _broken(file: Path, what: str, error: BaseException) -> Fb3Error:
    """The error for an exception in the user's code, with the last line of it that ran."""
    ran, own = traceback.extract_tb(error.__traceback__), str(file.absolute())
    frames = [frame.lineno for frame in ran if frame.filename == own]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
    where = f", line {line}" if line else ""
    return Fb3Error(f"{file}{where}: {what}: {type(error).__name__}: {one_line(error)}; mend the file")


def _texts(column: pd.Series) -> np.ndarray:
    return column.astype(str).where(column.notna(), "").to_numpy(object)


def _in_order(made: pd.DataFrame, table: pd.DataFrame, id_column: str, file: Path, path: Path) -> pd.DataFrame:
    """The rows in the order of `table`, whose ids they must have, each as often."""
    ids, wanted = made[id_column], table[id_column]
    if (there := Counter(ids)) != (known := Counter(wanted)):
        lost, new = (known - there), (there - known)
        raise Fb3Error(
            f"{file}: prepare() changes the ids of {path}: {lost.total()} are lost {[*lost][:_SHOWN]}, {new.total()} "
            f"are new or stand there again {[*new][:_SHOWN]}; where split is 'test', keep each row, once, with its id"
        )
    rows = np.empty(len(made), np.int64)
    rows[np.argsort(wanted.to_numpy(), kind="stable")] = np.argsort(ids.to_numpy(), kind="stable")
    return made.iloc[rows].reset_index(drop=True)
