"""The rows and columns that a submission must have: sample_submission.csv gives them, test.csv corrects the rows.

Where the two files differ, a user gets an error that names both. Nobody reads an error in Kaggle's run on the hidden
rows (a rerun), and test.csv's rows are scored: there the submission has these rows, each id once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.joins import read_split
from fb3.data.tables import read_table
from fb3.errors import Fb3Error, listed
from fb3.recipe import Recipe
from fb3.system.kaggle import COMPETITION_MARKER
from fb3.system.progress import say
from fb3.targets.target import Target


@dataclass
class SubmissionForm:
    """The form of a submission, and the essays to predict.

    ids: one a row, in order, named as the id column; none until a file gives them. sample: the sample's name.
    columns: the targets, in order. header: whether the file begins with their names. cells: the sample's own, where
    there is no recipe. essays: ids and texts; none where they cannot be read. error: why nothing may be predicted.
    warnings: faults of the files that a rerun tolerates.
    """

    ids: pd.Series | None = None
    sample: str = COMPETITION_MARKER
    columns: list[str] = field(default_factory=list)
    header: bool = True
    cells: pd.DataFrame | None = None
    essays: pd.DataFrame | None = None
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)


def read_sample(path: Path | None, recipe: Recipe | None, target: Target | None, *, rerun: bool) -> SubmissionForm:
    """The form of the sample submission, before test.csv is read, which may be large.

    Args:
        path: sample_submission.csv; none: test.csv gives rows and order.
        recipe: names the id column; none: it is the sample's first one.
        target: the recipe's, which says what columns the sample may have; none: any.
        rerun: this is the run on the hidden rows, which goes on without a sample where it has a recipe.

    Raises:
        Fb3Error: the sample cannot be read.
    """
    form = SubmissionForm(columns=list(target.forms()[0]) if target else [])
    if path is None:
        form.header = recipe is None or recipe.data.files.header
        return form
    form.sample = path.name
    wanted = [recipe.data.id_column] if recipe else []
    if target and len(target.forms()) == 1:
        wanted += form.columns
    sample, fault = _read(path, wanted, rerun, form.warnings)
    if sample is None:
        if not (rerun and recipe):
            raise fault
        form.warnings.append(str(fault))
        return form
    form.ids = sample[recipe.data.id_column if recipe else sample.columns[0]]
    try:
        form.columns = submitted_columns(sample, target, form.sample)
    except Fb3Error as error:
        form.error = error
    form.cells = None if recipe else sample
    return form


def read_test(
    form: SubmissionForm,
    path: Path,
    recipe: Recipe | None,
    *,
    own_order: bool,
    rerun: bool,
    folder: str | Path | None = None,
) -> None:
    """Reads the essays into the form, and decides whether the submission has their rows or the sample's.

    Args:
        form: the form from `read_sample`.
        path: test.csv, or the file in its place.
        recipe: names the columns of ids and texts; none: only ids are read.
        own_order: where the file has none of the sample's ids, the submission gets the file's rows.
        rerun: this is the run on the hidden rows, where a key that a joined file lacks leaves its cells empty.
        folder: where the files of data.files.joins are; none: beside `path`.

    Raises:
        Fb3Error: neither file gives ids.
    """
    identifier = recipe.data.id_column if recipe else form.ids.name
    texts = recipe.data.input_columns() if recipe else ()
    read = read_table
    if recipe and (recipe.data.files.joins or recipe.data.prepare or recipe.data.frames):
        faults, place = form.warnings if rerun else None, None if folder is None else Path(folder)
        read = partial(read_split, data=recipe.data, split="test", folder=place, faults=faults)
    table, fault = _read(path, [identifier, *texts], rerun, form.warnings, read)
    form.essays, form.error = table, fault or form.error
    if fault and rerun:
        table, _ = _read(path, [identifier], rerun, [])
    if table is not None:
        _choose_rows(form, table[identifier], path, own_order, rerun)
    elif form.ids is None or (own_order and not rerun):
        raise fault


def _choose_rows(form: SubmissionForm, ids: pd.Series, path: Path, own_order: bool, rerun: bool) -> None:
    """Takes the essays' ids where the sample has none, or where its ids must give way."""
    if form.ids is None:
        form.ids = ids
        return
    try:
        check_same_ids(ids, form.ids, path, form.sample)
    except Fb3Error as error:
        if own_order and not set(ids) & set(form.ids):
            say(f"{path}: other ids than the sample's; the rows keep the order of {path.name}")
        elif rerun:
            form.warnings.append(f"{error}. The submission has the rows of {path.name}, because those are scored")
        else:
            form.error = form.error or error
            return
        form.ids = ids


def _read(
    path: Path,
    wanted: Sequence[str],
    rerun: bool,
    warnings: list[str],
    read: Callable[..., pd.DataFrame] | None = None,
) -> tuple[pd.DataFrame | None, Exception | None]:
    """A table of unique ids, or the error that stands against it. A rerun leaves rows of bad ids out instead.

    wanted: columns, the ids' first; none: the table's first column holds the ids.
    """
    try:
        table = (read or read_table)(path, wanted=wanted)
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


def submitted_columns(sample: pd.DataFrame, target: Target | None, name: str) -> list[str]:
    """The columns of a sample submission beside its ids, in its order; without a target all but the first.

    Args:
        sample: the sample submission.
        target: says what forms it may have; none: any.
        name: the sample's file, for the error.

    Raises:
        Fb3Error: they are none of the target's forms.
    """
    identifier = target.id_column if target else sample.columns[0]
    columns = [column for column in sample.columns if column != identifier]
    if target and not any(set(columns) == set(form) for form in target.forms()):
        forms = " or ".join(listed([identifier, *form]) for form in target.forms())
        keys = "task.classes" if target.exclusive and len(columns) > 1 else "data.id_column and data.target_columns"
        raise Fb3Error(
            f"{name} has the columns {listed(sample.columns)}, the predictions {forms}; "
            f"set {keys} to the sample's when training"
        )
    return columns


def check_same_ids(ids: pd.Series, sample_ids: pd.Series, source: Path, sample_name: str) -> None:
    """Compares a file's ids with the sample submission's; see `match_ids` for the error."""
    match_ids(ids, sample_ids, source, sample_name, "; take both from the same download")
