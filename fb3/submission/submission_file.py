"""submission.csv: arranged as sample_submission.csv, checked, and valid from the first moment on."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error
from fb3.system.files import write_csv


class Standing:
    """The submission that stands: first the training means, then better predictions as they come.

    Args:
        ids: of its rows, in their order; named as the id column.
        means: what every row holds at first, by target, in the order of the columns.
        bounds: lowest and highest value.
        out: the file, written whole or not at all.
    """

    def __init__(self, ids: pd.Series, means: Mapping[str, float], bounds: tuple[float, float], out: Path) -> None:
        self.out, self.bounds = out, bounds
        self.columns = list(means)
        rows = np.tile(np.clip(np.array([*means.values()], np.float32), *bounds), (len(ids), 1))
        self.table = pd.DataFrame(rows, columns=self.columns, index=pd.Index(ids, name=ids.name))
        self.update(ids.iloc[:0], rows[:0])

    def update(self, ids: np.ndarray | pd.Series, values: np.ndarray) -> pd.DataFrame:
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
        return submission


def check_form(ids: pd.Series, sample: pd.DataFrame, targets: list[str], source: str) -> None:
    """Compares the essays with the sample submission.

    Args:
        ids: of the essays.
        sample: the sample submission; only its ids and columns are looked at.
        targets: what is predicted.
        source: the essays' file, named in the errors.

    Raises:
        Fb3Error: the ids or the columns differ; gives both counts and examples.
    """
    check_columns(sample, [ids.name, *targets])
    check_same_ids(ids, sample[ids.name], source)


def check_columns(sample: pd.DataFrame, columns: list[str]) -> None:
    """Compares the sample submission's columns with those that are predicted, the ids' first.

    Raises:
        Fb3Error: they differ.
    """
    if set(columns) != set(sample.columns):
        raise Fb3Error(
            f"sample_submission.csv has the columns {list(sample.columns)}, the predictions {columns}; "
            "set data.id_column and data.target_columns to the sample's when training"
        )


def check_same_ids(ids: pd.Series, wanted: pd.Series, source: str) -> None:
    """Compares the essays' ids with the sample submission's.

    Raises:
        Fb3Error: they differ; gives both counts and examples.
    """
    have, want = set(ids), set(wanted)
    if have != want:
        absent, extra = sorted(want - have), sorted(have - want)
        raise Fb3Error(
            f"{source} and sample_submission.csv hold different ids: {len(extra)} only in {source} {extra[:5]}, "
            f"{len(absent)} only in sample_submission.csv {absent[:5]}; take both from the same download"
        )


def check_values(submission: pd.DataFrame, minimum: float, maximum: float) -> None:
    """Refuses what the competition would refuse or score badly.

    Raises:
        Fb3Error: an empty table, duplicate ids, a NaN, or a value outside [minimum, maximum]; names the row.
    """
    identifier = submission.columns[0]
    if submission.empty:
        raise Fb3Error("the submission has no row")
    if (twice := submission[identifier][submission[identifier].duplicated()]).size:
        raise Fb3Error(f"the submission has duplicate ids: {twice.head(5).tolist()}")
    values = submission.iloc[:, 1:].to_numpy(np.float32)  # as predicted: the bounds must be rounded alike
    bad = ~np.isfinite(values) | (values < np.float32(minimum)) | (values > np.float32(maximum))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise Fb3Error(
            f"the submission has {bad.sum()} values that are not between {minimum} and {maximum}, first "
            f"{values[row, column]} at {identifier} {submission[identifier].iloc[row]}, "
            f"column {submission.columns[column + 1]}"
        )
