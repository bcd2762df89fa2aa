"""Which rows and columns a submission must have: test.csv's essays against sample_submission.csv."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fb3.errors import Fb3Error
from fb3.essays import check_ids, read_table
from fb3.progress import say
from fb3.recipe import Recipe
from fb3.submission import check_columns, check_same_ids


@dataclass
class Asked:
    """ids: of the submission's rows, in their order, named as the id column. columns: the targets in theirs. essays:
    ids and texts. error: why nothing may be predicted. warnings: faults of the files that a rerun lives with.
    """

    ids: pd.Series
    columns: list[str]
    essays: pd.DataFrame | None
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)


def what_is_asked(source: Path, sample: Path | None, recipe: Recipe | None, *, own_order: bool, rerun: bool) -> Asked:
    """Rows and columns in the form of the sample submission.

    Where the two files do not fit, a user gets an error that names both. In Kaggle's run on the hidden rows nobody
    reads it, and the rows that are scored are test.csv's: there these are asked for, each id once.

    Args:
        source: test.csv, or the file in its place.
        sample: sample_submission.csv; none: rows and order are those of `source`.
        recipe: names the columns; none: the sample does, and its first column holds the ids.
        own_order: where none of the source's ids is in the sample, its rows are asked for all the same.
        rerun: this is the run on the hidden rows.

    Raises:
        Fb3Error: no ids can be told; without `rerun`, also a bad sample.
    """
    warnings: list[str] = []
    wanted = [recipe.data.id_column, *recipe.data.target_columns] if recipe else []
    form, fault = _attempt(sample, wanted, rerun, warnings) if sample else (None, None)
    if fault and not (rerun and recipe):
        raise fault
    if fault:
        warnings.append(str(fault))
    identifier = recipe.data.id_column if recipe else form.columns[0]
    texts = recipe.data.text_columns() if recipe else ()
    essays, error = _attempt(source, [identifier, *texts], rerun, warnings)
    known = essays
    if error and rerun:
        known, _ = _attempt(source, [identifier], rerun, [])
    if known is None and (form is None or (own_order and not rerun)):
        raise error
    rows = known if form is None else form
    if form is not None and known is not None:
        other = own_order and not set(known[identifier]) & set(form[identifier])
        try:
            check_same_ids(known[identifier], form[identifier], str(source))
        except Fb3Error as apart:
            if other or rerun:
                rows = known
                say(f"{source}: other ids than {sample.name}; the rows keep the order of {source.name}")
            if rerun and not other:
                warnings.append(f"{apart}. The submission has the rows of {source.name}, because those are scored")
            elif not other:
                error = error or apart
    columns = list(recipe.data.target_columns) if recipe else []
    if form is not None:
        there = [column for column in form.columns if column != identifier]
        columns = there if not recipe or set(there) == set(columns) else columns
        try:
            check_columns(form, [identifier, *columns])
        except Fb3Error as differ:
            error = error or differ
    return Asked(rows[identifier], columns, essays, error, warnings)


def _attempt(
    path: Path, wanted: Sequence[str], rerun: bool, warnings: list[str]
) -> tuple[pd.DataFrame | None, Exception | None]:
    """A table with ids as they must be, or why there is none; in a rerun, rows of bad ids are left out instead.

    wanted: the column of the ids first; none: the table's first.
    """
    try:
        table = read_table(path, wanted)
        ids = table[wanted[0] if wanted else table.columns[0]]
        try:
            check_ids(ids, path)
        except Fb3Error as error:
            table = table[(ids.str.strip() != "") & ~ids.duplicated()].reset_index(drop=True)
            if not rerun or table.empty:
                raise
            warnings.append(f"{error}. Rows without an id are left out, and all but the first of each id")
        return table, None
    except Exception as error:
        return None, error
