"""Forms in which predictions are averaged: as they are, as ranks, as logits, or as votes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fb3.ensembles.calibration import calibrated

FORMS = ("values", "ranks", "logits", "votes")
_LEAST = 1e-7  # probabilities below it would let one member decide alone
_DIGITS = 7  # Blended ranks may be float32
_UNDECIDED = 1e-6  # share of the probabilities in votes: it decides between classes of as many votes


class Averaging(NamedTuple):
    """The way from runs' predictions to the values of a submission.

    form: a name in `FORMS`. exclusive: the columns are classes of one label. calibration: (2, K) slope and shift of
    each column, which the averaged values go through; none: they stay as they are. members: how many runs the
    calibration is for; fewer together shrink less, so that it would stretch them too far, and is left out.
    """

    form: str = "values"
    exclusive: bool = False
    calibration: np.ndarray | None = None
    members: int = 0


def averaging_of(stored: Mapping[str, Any], columns: Sequence[str], exclusive: bool, members: int) -> Averaging:
    """The averaging of some members that ensemble.json or a manifest holds, which were checked when they were read."""
    line = stored.get("calibration")
    line = line and np.array([[line[name][column] for column in columns] for name in ("slope", "shift")])
    return Averaging(stored.get("blended", "values"), exclusive, line, members)


def averaged(how: Averaging, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Runs' predictions (R, N, K) of the same essays with weights (R, K), in no column all zero, to values (N, K)."""
    total = np.zeros(values.shape[1:], np.float64)
    for each, weight in zip(values, weights / weights.sum(0), strict=True):
        total += weight * into_form(how.form, each, how.exclusive)
    restored = out_of_form(how.form, total, values, how.exclusive)
    whole = how.calibration is not None and len(values) >= how.members
    return calibrated(restored, how.calibration) if whole else restored


def into_form(form: str, values: np.ndarray, exclusive: bool) -> np.ndarray:
    """One member's predictions (N, K) as they are averaged.

    Args:
        form: a name in `FORMS`; logits and votes are for probabilities.
        values: the predictions.
        exclusive: the columns are classes of one label.
    """
    if form == "ranks":
        return ranks(values)
    if form == "logits":
        logs = np.log(np.clip(values, _LEAST, None))
        return logs if exclusive else logs - np.log(np.clip(1.0 - values, _LEAST, None))
    if form == "votes":
        votes = np.eye(values.shape[1])[values.argmax(1)] if exclusive else (values > 0.5).astype(np.float64)
        return (1.0 - _UNDECIDED) * votes + _UNDECIDED * values
    return values


def out_of_form(form: str, blended: np.ndarray, members: np.ndarray, exclusive: bool) -> np.ndarray:
    """A blend (N, K) as predictions again; `members` (M, N, K) are those that it was made of.

    Logits become probabilities. A rank becomes the mean of the members' values at it, so that the order stays.
    """
    if form == "ranks":
        reference, places = np.sort(members, axis=1).mean(0), np.arange(1, len(blended) + 1) / len(blended)
        tied = np.round(blended, _DIGITS)  # sums of ranks that tie differ by rounding
        columns = zip(ranks(tied).T, reference.T, strict=True)
        return np.stack([np.interp(column, places, each) for column, each in columns], axis=1)
    return probabilities_of(blended, exclusive) if form == "logits" else blended


def probabilities_of(logits: np.ndarray, exclusive: bool) -> np.ndarray:
    """Logits (N, K) through a softmax over the columns where they are classes of one label, else each by itself."""
    if not exclusive:
        return 1.0 / (1.0 + np.exp(-logits))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each column as shares of the rows, (N, K); equal values share the mean of their ranks."""
    return pd.DataFrame(values).rank().to_numpy() / len(values)
