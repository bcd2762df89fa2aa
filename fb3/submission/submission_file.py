"""submission.csv: valid from the first moment on, first with the training means, then with better predictions."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.bundles.bundle import Bundle
from fb3.data.ids import check_unique
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.submission.form import SubmissionForm
from fb3.submission.summary import Summary
from fb3.system.file_names import FOLD_JSON
from fb3.system.files import read_json, write_csv
from fb3.system.progress import say


class SubmissionFile:
    """A submission on disk, checked and whole at every moment.

    Args:
        ids: one a row, in order; named as the id column.
        means: the value that every row holds at first, by target, in the order of the columns.
        bounds: lowest and highest value.
        out: the file.
    """

    def __init__(self, ids: pd.Series, means: Mapping[str, float], bounds: tuple[float, float], out: Path) -> None:
        self.out, self.bounds = out, bounds
        self.columns = list(means)
        rows = np.tile(np.clip(np.array([*means.values()], np.float32), *bounds), (len(ids), 1))
        self.table = pd.DataFrame(rows, columns=self.columns, index=pd.Index(ids, name=ids.name))
        self.update(ids.iloc[:0], rows[:0])

    def update(self, ids: np.ndarray | pd.Series, values: np.ndarray) -> None:
        """Puts in values (N, K), in the order of `means`, clipped to the bounds, and writes the file anew.

        Raises:
            Fb3Error: a value that no submission may hold; the file stays as it was.
        """
        table = self.table.copy()
        table.loc[list(ids), self.columns] = np.clip(values, *self.bounds).astype(np.float32)
        submission = table.reset_index()
        check_values(submission, *self.bounds)
        write_csv(submission, self.out)
        self.table = table


def check_values(submission: pd.DataFrame, minimum: float, maximum: float) -> None:
    """Refuses values that the competition would refuse or score badly.

    Raises:
        Fb3Error: an empty table, duplicate ids, a NaN, or a value outside [minimum, maximum]; names the row.
    """
    ids = submission.iloc[:, 0]
    if submission.empty:
        raise Fb3Error("the submission has no row")
    check_unique(ids, "the submission")
    values = submission.iloc[:, 1:].to_numpy(np.float32)  # float32, so that the bounds round like the values
    bad = ~np.isfinite(values) | (values < np.float32(minimum)) | (values > np.float32(maximum))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise Fb3Error(
            f"the submission has {bad.sum()} values that are not between {minimum} and {maximum}, first "
            f"{values[row, column]} at {ids.name} {ids.iloc[row]}, column {submission.columns[column + 1]}"
        )


def write_first_file(
    form: SubmissionForm, bundle: Bundle, recipe: Recipe | None, out: Path, summary: Summary
) -> SubmissionFile:
    """Writes the training means, averaged over all folds that can be read, into every row that the form asks for."""
    bounds = (recipe.task.minimum, recipe.task.maximum) if recipe else (-np.inf, np.inf)
    found = _training_means(bundle, form.columns)
    if not found:
        say(f"{bundle.path}: no fold tells its training means; the middle of the range stands in")
        found = [dict.fromkeys(form.columns, sum(bounds) / 2 if recipe else 0.0)]
    means = {column: float(np.mean([fold[column] for fold in found])) for column in form.columns}
    submission = SubmissionFile(form.ids, means, bounds, out)
    summary.phase("first file")
    say(f"{out}: {len(form.ids)} rows of training means stand after {time.monotonic() - summary.start:.1f} s")
    return submission


def _training_means(bundle: Bundle, columns: list[str]) -> list[dict[str, float]]:
    found = []
    for _, _, folds in bundle.runs():
        for file in (fold / FOLD_JSON for fold in folds):
            try:
                bundle.check(file.relative_to(bundle.path).as_posix())
                means = read_json(file, {"target_means": dict})["target_means"]
                numbers = {column: float(means[column]) for column in columns}
                if not all(map(math.isfinite, numbers.values())):
                    raise Fb3Error(f"{file}: target_means are {numbers}")
                found.append(numbers)
            except Exception as error:  # the first file must stand whatever a fold says
                say(f"{error if isinstance(error, Fb3Error) else f'{file}: {error!r}'}: its means are not used")
    return found
