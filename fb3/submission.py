"""submission.csv: arranged as sample_submission.csv and checked."""

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error


def arrange(predicted: pd.DataFrame, sample: pd.DataFrame, source: str) -> pd.DataFrame:
    """The predictions in the columns and the row order of the sample submission.

    Args:
        predicted: id column first, then one column a target.
        sample: the sample submission; only its ids, columns and order are used.
        source: the essays' file, named in the errors.

    Raises:
        Fb3Error: the ids or the columns differ; gives both counts and examples.
    """
    identifier = sample.columns[0]
    if set(predicted.columns) != set(sample.columns):
        raise Fb3Error(
            f"sample_submission.csv has the columns {list(sample.columns)}, the predictions {list(predicted.columns)}; "
            "set data.id_column and data.target_columns to the sample's when training"
        )
    have, want = set(predicted[identifier]), set(sample[identifier])
    if have != want:
        absent, extra = sorted(want - have), sorted(have - want)
        raise Fb3Error(
            f"{source} and sample_submission.csv hold different ids: {len(extra)} only in {source} {extra[:5]}, "
            f"{len(absent)} only in sample_submission.csv {absent[:5]}; take both from the same download"
        )
    return predicted.set_index(identifier).loc[sample[identifier]].reset_index()[list(sample.columns)]


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
