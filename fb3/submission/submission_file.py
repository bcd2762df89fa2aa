"""submission.csv: valid from the first moment on, first with the training means, then with better predictions."""

import math
import time
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.bundles.bundle import Bundle
from fb3.data.ids import check_unique
from fb3.errors import Fb3Error
from fb3.submission.form import SubmissionForm
from fb3.submission.summary import Summary
from fb3.system.file_names import FOLD_JSON
from fb3.system.files import read_json, write_csv
from fb3.system.progress import say
from fb3.targets.decisions import nearest_labels
from fb3.targets.target import Target


class SubmissionFile:
    """A submission on disk, checked and whole at every moment.

    Args:
        ids: one a row, in order; named as the id column.
        first: the outputs that every row holds at first, (K,).
        target: turns outputs into a submission's cells.
        columns: the submission's, one of the target's `forms`.
        out: the file.
        header: whether it begins with a line of the columns' names.
    """

    def __init__(
        self, ids: pd.Series, first: np.ndarray, target: Target, columns: list[str], out: Path, *, header: bool = True
    ) -> None:
        self.out, self.target, self.columns, self.header = out, target, columns, header
        rows = np.tile(np.asarray(first, np.float32), (len(ids), 1))
        guessing = copy(target)
        guessing.decision = nearest_labels(target.decision)
        self.cells = guessing.render(rows, columns).set_index(pd.Index(ids, name=ids.name))
        self._write(self.cells)

    def update(self, ids: np.ndarray | pd.Series, values: np.ndarray) -> None:
        """Puts in predictions (N, K) and writes the file anew.

        Raises:
            Fb3Error: a value that no submission may hold; the file stays as it was.
        """
        cells, rendered = self.cells.copy(), self.target.render(np.asarray(values, np.float32), self.columns)
        found = rendered.to_numpy()
        rendered.insert(0, cells.index.name, list(ids))
        self.target.check_cells(rendered)
        cells.loc[list(ids)] = found
        self._write(cells)

    def _write(self, cells: pd.DataFrame) -> None:
        frame = cells.reset_index()
        check_frame(frame, self.target)
        write_csv(frame, self.out, header=self.header)
        self.cells, self.frame = cells, frame


def check_frame(submission: pd.DataFrame, target: Target) -> None:
    """Refuses a submission that the competition would refuse or score badly.

    Raises:
        Fb3Error: an empty table, duplicate ids, or a cell that the target cannot hold; names the row.
    """
    if submission.empty:
        raise Fb3Error("the submission has no row")
    check_unique(submission.iloc[:, 0], "the submission")
    target.check_cells(submission)


@dataclass(frozen=True)
class SampleFile:
    """A submission that stands where no recipe can be read, so that nothing can be predicted."""

    frame: pd.DataFrame


def write_first_file(
    form: SubmissionForm, bundle: Bundle, target: Target | None, out: Path, summary: Summary
) -> SubmissionFile | SampleFile:
    """Writes the training means, averaged over all folds that can be read, into every row that the form asks for.

    Where no fold tells its means, the middle of the range stands in, and without a target the sample's own cells.
    """
    columns = list(target.columns if target else form.columns)
    found = _training_means(bundle, columns)
    means = np.mean([[fold[column] for column in columns] for fold in found], axis=0) if found else None
    if target is None:
        submission = SampleFile(_sample_cells(form, means))
        write_csv(submission.frame, out)
    else:
        if means is None:
            say(f"{bundle.path}: no fold tells its training means; the middle of the range stands in")
        first = target.middle() if means is None else means
        submission = SubmissionFile(form.ids, first, target, form.columns, out, header=form.header)
    summary.phase("first file")
    say(f"{out}: {len(form.ids)} rows of training means stand after {time.monotonic() - summary.start:.1f} s")
    return submission


def _sample_cells(form: SubmissionForm, means: np.ndarray | None) -> pd.DataFrame:
    """The form's rows with means, or the sample's cells; an id that the sample lacks gets its first row's cells.

    Means are rounded where the sample holds whole numbers alone: the competition may take no others.
    """
    if means is not None:
        cells = form.cells[form.columns]
        whole = all(cells[column].str.fullmatch("-?[0-9]+").all() for column in form.columns)
        means = np.rint(means).astype(int) if whole else means.astype(np.float32)
        frame = pd.DataFrame(np.tile(means, (len(form.ids), 1)), columns=form.columns)
        frame.insert(0, form.ids.name, form.ids.to_numpy())
        return frame
    cells = form.cells.drop_duplicates(form.ids.name).set_index(form.ids.name)
    return cells.reindex(form.ids).fillna(cells.iloc[0]).reset_index()


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
