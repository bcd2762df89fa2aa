"""A guess which columns of a table hold ids, texts and targets, for the mend in a message about a missing column."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.data.tables import FOLD_COLUMN, to_floats
from fb3.recipe import builtin_names, load_competition
from fb3.recipe.data import DataSettings
from fb3.system.progress import as_command

_MOST_LABELS = 100  # different cells of a column of labels


class Columns(NamedTuple):
    """Names of columns; None and empty where none looks right."""

    id: str | None
    text: str | None
    targets: list[str]


def guess_columns(table: pd.DataFrame, sample: Sequence[str] = ()) -> Columns:
    """Guesses the columns of a table of `read_table`.

    The id stands once in each row, best in the sample's first column or under a name that ends in "id". The text has
    the longest cells that are no numbers. Targets are the sample's other columns, where the table has them all; else
    the columns of numbers, else the last column of few labels.

    Args:
        table: the essays, every cell as text.
        sample: the sample submission's columns, where they are known.
    """
    numeric = [name for name in table if np.isfinite(to_floats(table[name])).all() and len(table)]
    texts = [name for name in table if name not in numeric]
    text = max(texts, key=lambda name: table[name].str.len().mean(), default=None)
    alone = [name for name in table if name != text and table[name].is_unique and (table[name] != "").all()]
    named = [name for name in alone if name.lower().endswith("id")]
    identifier = next((name for name in (*sample[:1], *named, *alone) if name in alone), None)
    others = [name for name in table if name not in (identifier, text, FOLD_COLUMN)]
    targets = [name for name in sample if name != identifier]
    if not targets or not {*targets} <= {*others}:
        targets = [name for name in others if name in numeric and not name.lower().endswith("id")]
    few = [name for name in others if 1 < table[name].nunique() <= min(_MOST_LABELS, len(table) // 2)]
    return Columns(identifier, text, targets or few[-1:])


def fitting_overrides(table: pd.DataFrame, data: DataSettings, wanted: Collection[str], sample: Sequence[str]) -> str:
    """The end of a message about wanted columns that a table lacks: the overrides that would fit, where any would."""
    missing, guess = {*wanted} - {*table.columns}, guess_columns(table, sample)
    meant = []
    if data.id_column in missing and guess.id:
        meant.append(f"data.id_column={guess.id}")
    if data.text_column in missing and guess.text:
        meant.append(f"data.text_column={guess.text}")
    if missing & {*data.target_columns} and guess.targets:
        meant.append(f"data.target_columns=[{','.join(guess.targets)}]")
    names = builtin_names("competition") if {*data.target_columns} & {*wanted} else []
    known = next((name for name in names if _fits(name, table)), None)
    end = f"; or --competition {known}, whose columns these are" if known else ""
    return f": {as_command(meant)} would fit{end}" if meant else ""


def _fits(competition: str, table: pd.DataFrame) -> bool:
    """Whether a table has the columns of a built-in competition's train.csv."""
    data = load_competition(competition).data
    return {data.id_column, data.text_column, *data.target_columns} <= {*table.columns}
