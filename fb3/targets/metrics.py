"""Metrics on plain arrays; rows are essays, columns are targets."""

from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """The score of predictions against truths.

    overall: the competition's metric. columns: the metric of each. loss: mean validation loss, NaN where unknown.
    """

    overall: float
    columns: dict[str, float]
    lower_is_better: bool = True
    loss: float = float("nan")

    def better_than(self, other: "Score | None") -> bool:
        """True where there is nothing to beat; never True for a NaN."""
        if other is None:
            return bool(np.isfinite(self.overall))
        return self.overall < other.overall if self.lower_is_better else self.overall > other.overall


def rmse_columns(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Root mean squared error of each column: (N, K), (N, K) -> (K,).

    Raises:
        ValueError: the shapes differ or there is no row.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if truth.shape != predicted.shape or truth.ndim != 2 or not len(truth):
        raise ValueError(f"truth is {truth.shape}, predicted is {predicted.shape}: want the same (N > 0, K)")
    return np.sqrt(np.mean((truth - predicted) ** 2, axis=0))


def mcrmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean columnwise root mean squared error, FB3's metric; lower is better."""
    return float(rmse_columns(truth, predicted).mean())
