"""The competitions' metrics, on plain arrays; rows are essays, columns are targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error


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


@dataclass(frozen=True)
class Metric:
    """A metric of predicted values.

    title: its name in messages. columns: from truths and predictions, (N, K) each, to the columns' scores, (K,).
    overall: from these to one score. lower_is_better: its direction. in_units: the score is in the targets' units, so
    that it grows with their range.
    """

    title: str
    columns: Callable[[np.ndarray, np.ndarray], np.ndarray]
    overall: Callable[[np.ndarray], float] = np.mean
    lower_is_better: bool = False
    in_units: bool = False
    needs: str = "values"

    def score(self, truth: np.ndarray, predicted: np.ndarray, columns: Sequence[str]) -> Score:
        """The score of predictions (N, K), already clipped, against truths (N, K).

        Raises:
            Fb3Error: a column's truths give the metric no value; the column is named, and the mend.
            ValueError: the shapes differ or there is no row.
        """
        truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
        if truth.shape != predicted.shape or truth.ndim != 2 or not len(truth):
            raise ValueError(f"truth is {truth.shape}, predicted is {predicted.shape}: want the same (N > 0, K)")
        try:
            each = self.columns(truth, predicted)
        except _UndefinedError as error:
            raise Fb3Error(f"{self.title} of column {columns[error.column]!r}: {error}; or set metric=rmse") from None
        return Score(float(self.overall(each)), dict(zip(columns, each.tolist(), strict=True)), self.lower_is_better)


class _UndefinedError(ValueError):
    """Says why a column's truths give a metric no value."""

    column = 0


def _by_column(
    metric: Callable[[np.ndarray, np.ndarray], float],
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Applies a metric of one column, (N,) and (N,), to every column."""

    def columns(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        scores = np.empty(truth.shape[1])
        for place in range(truth.shape[1]):
            try:
                scores[place] = metric(truth[:, place], predicted[:, place])
            except _UndefinedError as error:
                error.column = place
                raise
        return scores

    return columns


def rmse_columns(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Root mean squared error of each column: (N, K), (N, K) -> (K,)."""
    return np.sqrt(np.mean((truth - predicted) ** 2, axis=0))


def mae_columns(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean absolute error of each column: (N, K), (N, K) -> (K,)."""
    return np.mean(np.abs(truth - predicted), axis=0)


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation; 0 where the predictions are all alike, because they order nothing."""
    if np.ptp(truth) == 0:
        raise _UndefinedError("all truths are alike, so nothing correlates with them; take more essays")
    one, other = truth - truth.mean(), predicted - predicted.mean()
    norm = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / norm) if np.ptp(predicted) else 0.0


def spearman(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    return pearson(*(pd.Series(values).rank().to_numpy() for values in (truth, predicted)))


def qwk(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Quadratic weighted kappa (Cohen 1968) of predictions rounded to whole numbers.

    With quadratic weights the disagreement expected by chance is the mean squared difference over all pairs, which is
    the sum of the variances and the squared difference of the means.
    """
    if not np.array_equal(truth, np.rint(truth)):
        raise _UndefinedError("has truths that are no whole numbers, and kappa compares classes")
    if np.ptp(truth) == 0:
        raise _UndefinedError("all truths are alike, so kappa has no value; take more essays")
    predicted = np.rint(predicted)
    by_chance = truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2
    return float(1 - np.mean((truth - predicted) ** 2) / by_chance)


def auc(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Area under the ROC curve of truths that are 0 or 1, by the ranks of the positives (Mann & Whitney 1947)."""
    if set(np.unique(truth)) != {0.0, 1.0}:
        raise _UndefinedError(f"wants truths of 0 and 1, and both; it has {np.unique(truth)[:5].tolist()}")
    positives = truth.sum()
    ranks = pd.Series(predicted).rank().to_numpy()[truth == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))


# Keyed by the names of `metric` in a recipe.
METRICS = {
    "mcrmse": Metric("MCRMSE", rmse_columns, lower_is_better=True, in_units=True),
    "rmse": Metric("RMSE", rmse_columns, lambda each: np.sqrt(np.mean(each**2)), lower_is_better=True, in_units=True),
    "mae": Metric("MAE", mae_columns, lower_is_better=True, in_units=True),
    "pearson": Metric("Pearson", _by_column(pearson)),
    "spearman": Metric("Spearman", _by_column(spearman)),
    "qwk": Metric("QWK", _by_column(qwk)),
    "auc": Metric("AUC", _by_column(auc)),
}


def mcrmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean columnwise root mean squared error of (N, K) each, FB3's metric; lower is better."""
    return METRICS["mcrmse"].score(truth, predicted, [str(k) for k in range(np.shape(truth)[-1])]).overall
