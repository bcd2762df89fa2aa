"""The competitions' metrics, on plain arrays; rows are essays, columns are targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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

    title: its name in messages. each: from truth and prediction of a column, (N,) each, to its score. overall: from the
    columns' scores, (K,), to one. lower_is_better: its direction. in_units: the score is in the targets' units, so that
    it grows with their range.
    """

    title: str
    each: Callable[[np.ndarray, np.ndarray], float]
    overall: Callable[[np.ndarray], float] = np.mean
    lower_is_better: bool = False
    in_units: bool = False

    def score(self, truth: np.ndarray, predicted: np.ndarray, columns: Sequence[str]) -> Score:
        """The score of predictions (N, K), already clipped, against truths (N, K).

        Raises:
            Fb3Error: the metric has no value for the truths of a column, which is named.
            ValueError: the shapes differ or there is no row.
        """
        truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
        if truth.shape != predicted.shape or truth.ndim != 2 or not len(truth):
            raise ValueError(f"truth is {truth.shape}, predicted is {predicted.shape}: want the same (N > 0, K)")
        scores = np.empty(len(columns))
        for place, column in enumerate(columns):
            try:
                scores[place] = self.each(truth[:, place], predicted[:, place])
            except _Undefined as error:
                raise Fb3Error(f"{self.title} of column {column!r}: {error}") from None
        overall = float(self.overall(scores))
        return Score(overall, dict(zip(columns, scores.tolist(), strict=True)), self.lower_is_better)


class _Undefined(ValueError):
    """A metric that has no value for the truths at hand; the message says why, and the mend."""


def rmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean squared error."""
    return float(np.sqrt(np.mean((truth - predicted) ** 2)))


def mae(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(truth - predicted)))


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation; 0 where the predictions are all alike, which order nothing."""
    if len(np.unique(truth)) < 2:
        raise _Undefined("all truths are alike, so nothing correlates with them; score more essays, or take rmse")
    one, other = truth - truth.mean(), predicted - predicted.mean()
    norm = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / norm) if norm else 0.0


def spearman(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    import pandas as pd

    return pearson(*(pd.Series(values).rank().to_numpy() for values in (truth, predicted)))


def qwk(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Quadratic weighted kappa (Cohen 1968) of predictions rounded to whole numbers."""
    from sklearn.metrics import cohen_kappa_score

    if not np.array_equal(truth, np.rint(truth)):
        raise _Undefined("holds scores that are no whole numbers; take rmse")
    if len(np.unique(truth)) < 2:
        raise _Undefined("all truths are alike, so kappa has no value; score more essays, or take rmse")
    truth, predicted = truth.astype(int), np.rint(predicted).astype(int)
    labels = np.arange(min(truth.min(), predicted.min()), max(truth.max(), predicted.max()) + 1)
    return float(cohen_kappa_score(truth, predicted, labels=labels, weights="quadratic"))


def auc(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Area under the ROC curve of truths that are 0 or 1."""
    from sklearn.metrics import roc_auc_score

    if set(np.unique(truth)) != {0.0, 1.0}:
        raise _Undefined(f"wants truths of 0 and 1, both of them, and has {np.unique(truth)[:5].tolist()}; take rmse")
    return float(roc_auc_score(truth, predicted))


# By the names of `metric` in a recipe.
METRICS = {
    "mcrmse": Metric("MCRMSE", rmse, lower_is_better=True, in_units=True),
    "rmse": Metric("RMSE", rmse, lambda columns: np.sqrt(np.mean(columns**2)), lower_is_better=True, in_units=True),
    "mae": Metric("MAE", mae, lower_is_better=True, in_units=True),
    "pearson": Metric("Pearson", pearson),
    "spearman": Metric("Spearman", spearman),
    "qwk": Metric("QWK", qwk),
    "auc": Metric("AUC", auc),
}


def mcrmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean columnwise root mean squared error of (N, K), FB3's metric; lower is better."""
    return METRICS["mcrmse"].score(truth, predicted, [str(k) for k in range(np.shape(truth)[-1])]).overall
