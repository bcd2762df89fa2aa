"""Which rows and columns a submission must have: sample_submission.csv says it, and test.csv's essays correct it.

Where the two files do not fit, a user gets an error that names both. In Kaggle's run on the hidden rows, a rerun,
nobody reads it, and the rows that are scored are test.csv's: there these are asked for, each id once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fb3.data.tables import check_ids, read_table
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.submission.submission_file import check_columns, check_same_ids
from fb3.system.progress import say


@dataclass
class SubmissionForm:
    """ids: of the submission's rows, in their order, named as the id column; none: no file has told them yet. columns:
    the targets in theirs. essays: ids and texts. error: why nothing may be predicted. warnings: faults of the files
    that a rerun lives with.
    """

    ids: pd.Series | None = None
    columns: list[str] = field(default_factory=list)
    essays: pd.DataFrame | None = None
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)


def asked_by_sample(sample: Path | None, recipe: Recipe | None, *, rerun: bool) -> SubmissionForm:
    """The form of the sample submission, before test.csv is read, which may be large.

    Args:
        sample: sample_submission.csv; none: rows and order are those of test.csv.
        recipe: names the columns; none: the sample does, and its first column holds the ids.
        rerun: this is the run on the hidden rows, which goes on without a sample where it has a recipe.

    Raises:
        Fb3Error: a bad sample.
    """
    asked = SubmissionForm(columns=list(recipe.data.target_columns) if recipe else [])
    if sample is None:
        return asked
    wanted = [recipe.data.id_column, *asked.columns] if recipe else []
    form, fault = _attempt(sample, wanted, rerun, asked.warnings)
    if form is None and not (rerun and recipe):
        raise fault
    if form is None:
        asked.warnings.append(str(fault))
        return asked
    asked.ids = form[recipe.data.id_column if recipe else form.columns[0]]
    there = [column for column in form.columns if column != asked.ids.name]
    try:
        check_columns(form, [asked.ids.name, *(asked.columns if recipe else there)])
        asked.columns = there
    except Fb3Error as differ:
        asked.error = differ
    return asked


def add_essays(asked: SubmissionForm, source: Path, recipe: Recipe | None, *, own_order: bool, rerun: bool) -> None:
    """Reads the essays; `ids` become theirs where there is no sample, and where theirs are others and are to win.

    Args:
        asked: as `asked_by_sample` gives it.
        source: test.csv, or the file in its place.
        recipe: names the texts' columns; none: only ids are read.
        own_order: where none of the source's ids is in the sample, its rows are asked for all the same.
        rerun: this is the run on the hidden rows.

    Raises:
        Fb3Error: no ids can be told.
    """
    identifier = recipe.data.id_column if recipe else asked.ids.name
    texts = recipe.data.text_columns() if recipe else ()
    known, fault = _attempt(source, [identifier, *texts], rerun, asked.warnings)
    asked.essays, asked.error = known, fault or asked.error
    if fault and rerun:
        known, _ = _attempt(source, [identifier], rerun, [])
    if known is None and (asked.ids is None or (own_order and not rerun)):
        raise fault
    if known is not None:
        _settle_ids(asked, known[identifier], source, own_order, rerun)


def _settle_ids(asked: SubmissionForm, ids: pd.Series, source: Path, own_order: bool, rerun: bool) -> None:
    """The essays' ids against the sample's."""
    if asked.ids is None:
        asked.ids = ids
        return
    try:
        check_same_ids(ids, asked.ids, str(source))
    except Fb3Error as apart:
        if own_order and not set(ids) & set(asked.ids):
            say(f"{source}: other ids than the sample's; the rows keep the order of {source.name}")
        elif rerun:
            asked.warnings.append(f"{apart}. The submission has the rows of {source.name}, because those are scored")
        else:
            asked.error = asked.error or apart
            return
        asked.ids = ids


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
