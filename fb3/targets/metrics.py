"""The competitions' metrics, on plain arrays; rows are essays, columns are targets, labels or classes.

The formulas are scikit-learn's with `labels=` given: a class that is absent from some rows is still one of the K
columns, so it cannot change a definition. They are written out, because the competition's image need not have
scikit-learn and its metrics take no soft labels; the tests compare each with scikit-learn's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error
from fb3.recipe.metric import FileMetricSettings, Needs, OwnMetricSettings, TwoLevelF1Settings
from fb3.targets.metric_file import call_metric

_NEAREST = 1e-7  # distance of probabilities from 0 and 1 in the log loss, which a sure mistake would make infinite


class Score(NamedTuple):
    """The score of predictions against truths.

    overall: the competition's metric. columns: the metric of each, empty where it is one of the whole table. loss: mean
    validation loss, NaN where unknown.
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


# From truths and predictions, (N, K) each, and whether the columns exclude each other, to the score and the columns'
# scores, (K,), or none. Columns that exclude each other are the classes of one label; others are labels of their own.
Formula = Callable[[np.ndarray, np.ndarray, bool], tuple[float, np.ndarray | None]]


@dataclass(frozen=True)
class Metric:
    """A metric of predictions.

    title: its name in messages. lower_is_better: its direction. in_units: the score is in the targets' units, so that
    it grows with their range. needs: the form of the predictions that it reads: values as they are, probabilities,
    their order alone, or decisions: whole numbers, or one class of several. parents: gives each class's parent by their
    names; the score is then the mean of the classes' and their parents'.
    """

    title: str
    formula: Formula
    lower_is_better: bool = False
    in_units: bool = False
    needs: Needs = "values"
    parents: Callable[[Sequence[str]], list[str]] | None = None

    def score(self, truth: np.ndarray, predicted: np.ndarray, columns: Sequence[str], exclusive: bool = False) -> Score:
        """The score of predictions against truths.

        A metric of decisions rounds predictions to whole numbers, a probability of exactly 0.5 to 0; of classes it
        takes the likeliest, in truths too, the first of equals. Predictions that are decided already stay as they are.

        Args:
            truth: (N, K): numbers; 0 or 1 for each label; with `exclusive` a row of 0 with a 1 for the class.
            predicted: (N, K), already clipped: numbers, probabilities, or decisions in the form of the truths.
            columns: K names.
            exclusive: the columns are the classes of one label, not targets or labels of their own.

        Raises:
            Fb3Error: a column's truths give the metric no value; the column is named, and the mend.
            ValueError: the shapes differ or there is no row.
        """
        truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
        if truth.shape != predicted.shape or truth.ndim != 2 or not len(truth):
            raise ValueError(f"truth is {truth.shape}, predicted is {predicted.shape}: want the same (N > 0, K)")
        if self.needs == "decisions":
            truth = one_hot(truth.argmax(1), truth.shape[1]) if exclusive else truth
            predicted = one_hot(predicted.argmax(1), truth.shape[1]) if exclusive else np.rint(predicted)
        try:
            overall, each = self.formula(truth, predicted, exclusive)
            if self.parents:
                _, codes = np.unique(self.parents(columns), return_inverse=True)
                of_parent = one_hot(codes, codes.max() + 1)  # (K, parents)
                overall = (overall + self.formula(truth @ of_parent, predicted @ of_parent, exclusive)[0]) / 2
        except _UndefinedError as error:
            other = "log_loss" if exclusive or set(np.unique(truth)) <= {0.0, 1.0} else "rmse"
            name = repr(columns[error.column])
            raise Fb3Error(f"{self.title} of column {name}: {error}; or set metric={other}") from None
        by_name = {} if each is None else dict(zip(columns, each.tolist(), strict=True))
        return Score(float(overall), by_name, self.lower_is_better)


class _UndefinedError(ValueError):
    """Says why a column's truths give a metric no value."""

    column = 0


def one_hot(classes: np.ndarray, count: int) -> np.ndarray:
    """Rows of 0 with a 1 at the class: (N,) -> (N, `count`) float64."""
    return np.eye(count)[classes]


def _mean(columns: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Formula:
    """The mean of the columns' scores."""

    def formula(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray]:
        each = columns(truth, predicted)
        return each.mean(), each

    return formula


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


def rmse(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray]:
    """Root mean squared error of all cells, and of each column's."""
    each = rmse_columns(truth, predicted)
    return np.sqrt(np.mean(each**2)), each


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
    """Quadratic weighted kappa (Cohen 1968) of whole numbers.

    With quadratic weights the disagreement expected by chance is the mean squared difference over all pairs, which is
    the sum of the variances and the squared difference of the means.
    """
    if not np.array_equal(truth, np.rint(truth)):
        raise _UndefinedError("has truths that are no whole numbers, and kappa compares classes")
    if np.ptp(truth) == 0:
        raise _UndefinedError("all truths are alike, so kappa has no value; take more essays")
    by_chance = truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2
    return float(1 - np.mean((truth - predicted) ** 2) / by_chance)


def _qwk(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray | None]:
    """The mean of the columns' kappas; a class counts as its place among the classes, which are in order."""
    if exclusive:
        return qwk(truth.argmax(1), predicted.argmax(1)), None
    return _mean(_by_column(qwk))(truth, predicted, exclusive)


def auc(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Area under the ROC curve of truths that are 0 or 1: the share of pairs in order (Mann & Whitney 1947)."""
    if set(np.unique(truth)) != {0.0, 1.0}:
        raise _UndefinedError(f"wants truths of 0 and 1, and both; it has {np.unique(truth)[:5].tolist()}")
    positives, negatives = np.sort(predicted[truth == 1]), np.sort(predicted[truth == 0])
    below = np.searchsorted(negatives, positives, "left").sum()
    tied = np.searchsorted(negatives, positives, "right").sum() - below  # half a pair each
    return float((below + tied / 2) / (len(positives) * len(negatives)))


def log_loss(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray | None]:
    """Cross-entropy of classes, or the mean over columns of the binary one; truths may be shares.

    Probabilities are kept 1e-7 away from 0 and 1. A row of classes is divided by its sum, as Kaggle does.
    """
    if bad := [place for place, column in enumerate(truth.T) if column.min() < 0 or column.max() > 1]:
        raise _undefined("has truths that are no probabilities from 0 to 1", bad[0])
    p = np.clip(predicted, _NEAREST, 1 - _NEAREST)
    if exclusive:
        return -(truth * np.log(p / p.sum(1, keepdims=True))).sum(1).mean(), None
    each = -(truth * np.log(p) + (1 - truth) * np.log1p(-p)).mean(0)
    return each.mean(), each


def accuracy(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, None]:
    """Share of rows whose class, or whose every column, is right."""
    if bad := [place for place, column in enumerate(truth.T) if (column != np.rint(column)).any()]:
        raise _undefined("has truths that are no whole numbers, so no decision is right", bad[0])
    return (truth == predicted).all(1).mean(), None


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray | None]:
    """Mean recall of the classes that are there; of labels the mean over columns of both values' recalls.

    A class without truths has no recall and is left out, as by scikit-learn's `balanced_accuracy_score`.
    """
    _check_binary(truth)
    if not exclusive:
        sides = [np.stack([1 - table, table], 2) for table in (truth, predicted)]  # (N, K, 2): a label's two values
        each = np.array(
            [balanced_accuracy(t, p, True)[0] for t, p in zip(*(side.swapaxes(0, 1) for side in sides), strict=True)]
        )
        return each.mean(), each
    there = truth.sum(0)
    return ((truth * predicted).sum(0)[there > 0] / there[there > 0]).mean(), None


def macro_f1(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray]:
    """Mean of the F1s of classes or labels; a class in neither truths nor decisions counts 0 (zero_division=0)."""
    _check_binary(truth)
    both = truth.sum(0) + predicted.sum(0)
    each = 2 * (truth * predicted).sum(0) / np.maximum(both, 1)
    return each.mean(), each


def micro_f1(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, None]:
    """F1 of all cells together; of classes it is the accuracy. 0 where there is no positive at all."""
    _check_binary(truth)
    return 2 * (truth * predicted).sum() / max(truth.sum() + predicted.sum(), 1), None


def f1_mean(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray]:
    """Mean of macro and micro F1, with the F1s of macro."""
    macro, each = macro_f1(truth, predicted, exclusive)
    return (macro + micro_f1(truth, predicted, exclusive)[0]) / 2, each


def f1_mean_of_present(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray]:
    """`f1_mean` whose macro F1 leaves out a class in neither truths nor decisions, as scikit-learn does by itself."""
    _, each = macro_f1(truth, predicted, exclusive)
    there = (truth + predicted).any(0)
    return (each[there].mean() + micro_f1(truth, predicted, exclusive)[0]) / 2, each


def _map_at(most: int) -> Metric:
    """Mean average precision of the `most` likeliest columns: with one truth a row, the mean of 1 / its rank.

    Equal probabilities are ranked in the order of the columns. A row without a truth counts 0.
    """

    def formula(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, None]:
        _check_binary(truth)
        order = np.argsort(-predicted, axis=1, kind="stable")[:, :most]
        hits = np.take_along_axis(truth, order, 1)  # (N, most)
        precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
        return ((precision * hits).sum(1) / np.clip(truth.sum(1), 1, most)).mean(), None

    return Metric(f"MAP@{most}", formula, needs="ranks")


def _check_binary(truth: np.ndarray) -> None:
    for place, column in enumerate(truth.T):
        if not set(np.unique(column)) <= {0.0, 1.0}:
            raise _undefined(f"wants truths of 0 and 1; it has {np.unique(column)[:5].tolist()}", place)


def _undefined(why: str, column: int) -> _UndefinedError:
    error = _UndefinedError(why)
    error.column = column
    return error


_AUC = _mean(_by_column(auc))
# Keyed by the names of `metric` in a recipe.
METRICS = {
    "mcrmse": Metric("MCRMSE", _mean(rmse_columns), lower_is_better=True, in_units=True),
    "rmse": Metric("RMSE", rmse, lower_is_better=True, in_units=True),
    "mae": Metric("MAE", _mean(mae_columns), lower_is_better=True, in_units=True),
    "pearson": Metric("Pearson", _mean(_by_column(pearson))),
    "spearman": Metric("Spearman", _mean(_by_column(spearman)), needs="ranks"),
    "qwk": Metric("QWK", _qwk, needs="decisions"),
    "auc": Metric("AUC", _AUC, needs="ranks"),
    "mean_column_auc": Metric("mean column AUC", _AUC, needs="ranks"),
    "log_loss": Metric("log loss", log_loss, lower_is_better=True, needs="probabilities"),
    "accuracy": Metric("accuracy", accuracy, needs="decisions"),
    "balanced_accuracy": Metric("balanced accuracy", balanced_accuracy, needs="decisions"),
    "macro_f1": Metric("macro F1", macro_f1, needs="decisions"),
    "micro_f1": Metric("micro F1", micro_f1, needs="decisions"),
    "f1_mean": Metric("mean of macro and micro F1", f1_mean, needs="decisions"),
    "map_at_k": _map_at(3),
    "map_at_5": _map_at(5),
    "map_at_10": _map_at(10),
    "map_at_25": _map_at(25),
}


def metric_of(wanted: str | OwnMetricSettings) -> Metric:
    """The metric that a recipe's `metric` or `fb3 score --metric` names; a file is only read when it scores.

    Args:
        wanted: a name in `METRICS`, FILE.py:FUNCTION, or the settings of a file or of two levels.
    """
    if isinstance(wanted, TwoLevelF1Settings):
        return Metric("two-level F1", f1_mean_of_present, needs="decisions", parents=wanted.parents_of)
    if isinstance(wanted, str) and ".py:" in wanted:
        file, _, function = wanted.rpartition(":")
        wanted = FileMetricSettings(file=file, function=function)
    if isinstance(wanted, str):
        return METRICS[wanted]
    own = wanted

    def formula(truth: np.ndarray, predicted: np.ndarray, exclusive: bool) -> tuple[float, None]:
        return call_metric(own, truth, predicted), None

    in_units = own.lower_is_better and own.needs == "values"  # an error, as far as settings can tell
    return Metric(own.function, formula, own.lower_is_better, in_units, own.needs)


def mcrmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean columnwise root mean squared error of (N, K) each, FB3's metric; lower is better."""
    return METRICS["mcrmse"].score(truth, predicted, [str(k) for k in range(np.shape(truth)[-1])]).overall
