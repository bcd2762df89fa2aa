"""Ways to weigh members compared honestly: weights are scored on essays that they were not fitted on.

Weights are fitted to squared errors; of classes and labels these are Brier scores of probabilities, also where logits
or votes are blended with them. A metric that compares the order within each column, such as AUC, has each member's
ranks in place of its values, and the truths stretched until the equal blend's slope on them is 1, so that order alone
decides. Greedy selection goes by the metric itself, unless this is a squared error or compares rounded numbers, which
hardly move from step to step.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fb3.ensembles.blend_forms import into_form, out_of_form, probabilities_of, ranks
from fb3.ensembles.calibration import calibrated, fit_calibration
from fb3.ensembles.weights import ErrorProducts, greedy_weights, ridge_weights, shrunk_weights, squared_losses
from fb3.errors import Fb3Error
from fb3.targets.metrics import METRICS, Metric

METHODS = ("equal", "shrunk", "greedy", "simplex")
FOLDS = 10  # folds of a split of the essays, where the members share no folds
_PARTS = 5  # parts of the second split, by which fits choose ridge and members
_DRAWS = 200  # samples of the bootstrap
_SQUARED = (METRICS["mcrmse"], METRICS["rmse"])


class Blend(NamedTuple):
    """A fitted way to weigh M members.

    method: a name in `METHODS`. shared: one weight a member for all columns. weights: (K, M), fitted on all essays.
    without: weights (K, M) by fold, fitted on the other folds. values: (N, K), each essay's blend under the weights
    without its fold. same, honest: the scores of blends under `weights` and of `values`. draws: scores of `values` on
    the bootstrap's draws of essays. calibration: (2, K) slope and shift of each column, which `values` went through;
    none: not calibrated.
    """

    method: str
    shared: bool
    weights: np.ndarray
    without: dict[int, np.ndarray]
    values: np.ndarray
    same: float
    honest: float
    draws: np.ndarray
    calibration: np.ndarray | None = None

    @property
    def title(self) -> str:
        """The method, and what it weighs."""
        weighs = "one weight for all columns" if self.shared else "a weight a column"
        title = self.method if self.method == "equal" else f"{self.method}, {weighs}"
        return title + (", calibrated" if self.calibration is not None else "")


class Stack:
    """Members' out-of-fold predictions, ready for fits on any of the folds.

    Args:
        predicted: (M, N, K), probabilities where the outputs are classes or labels.
        truth: (N, K).
        folds: (N,) numbers; weights that are scored on a fold are fitted on the others.
        metric: the competition's metric.
        columns: K names.
        exclusive: the columns are classes of one label, which have one weight a member: rows must sum to 1.
        finish: clips or decides blends (N, K) before they are scored.
        form: a name in `FORMS`, in which members are blended; none: ranks for a metric that compares the order within
            each column, else values.
    """

    def __init__(
        self,
        predicted: np.ndarray,
        truth: np.ndarray,
        folds: np.ndarray,
        metric: Metric,
        columns: Sequence[str],
        exclusive: bool = False,
        finish: Callable[[np.ndarray], np.ndarray] = np.asarray,
        form: str | None = None,
    ) -> None:
        self.predicted, self.truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
        self.folds, self.metric, self.columns, self.exclusive = folds, metric, list(columns), exclusive
        self.finish, self.sign = finish, 1 if metric.lower_is_better else -1
        by_column = bool(self.score(self.predicted.mean(0)).columns)  # the metric is a mean of columns' scores
        of_order = metric.needs == "ranks" and by_column and not exclusive
        self.form = form or ("ranks" if of_order else "values")
        self.formed = np.stack([into_form(self.form, member, exclusive) for member in self.predicted])
        self.values, self.target = self.predicted, self.truth
        if self.form == "ranks":
            self.values, self.target = self.formed, _stretched(ranks(self.truth), self.formed.mean(0))
        rounds = metric.needs == "decisions" and not exclusive
        self.by_metric = not (metric in _SQUARED or rounds) and (exclusive or by_column)
        self.products = ErrorProducts(self.values - self.target, folds, split(len(folds), parts=_PARTS, seed=1))
        self.size = len(self.values)

    def score(self, values: np.ndarray):
        """The metric of blends (N, K)."""
        return self.metric.score(self.truth, self.finish(values), self.columns, self.exclusive)

    def fit(self, method: str, shared: bool) -> Blend:
        """Fits a method on all essays, and on all folds but each."""
        without = {int(fold): self._weights(method, shared, fold) for fold in self.products.folds}
        values = self._honest(without.__getitem__)
        weights = self._weights(method, shared, None)
        same = self.score(self._restored(self._blend(weights))).overall
        return Blend(
            method, shared, weights, without, values, same, self.score(values).overall, self.draw_scores(values)
        )

    def calibrate(self, blend: Blend) -> Blend:
        """A blend whose columns went through slope and shift, fitted on honest blends, and scored on other folds.

        The honest blends shrink no less and no more than predictions of new essays do. A fold's slope knows this fold
        only by the weights of the others, two numbers a column, which no score can tell.
        """
        values = blend.values.copy()
        for fold in self.products.folds:
            rows = self.folds == fold
            values[rows] = calibrated(values[rows], fit_calibration(self.truth[~rows], blend.values[~rows]))
        found = fit_calibration(self.truth, blend.values)
        same = self.score(calibrated(self._blend(blend.weights), found)).overall
        honest, draws = self.score(values).overall, self.draw_scores(values)
        return blend._replace(values=values, same=same, honest=honest, draws=draws, calibration=found)

    def fit_all(self) -> list[Blend]:
        """All methods, with a weight a column where the columns are not classes of one label, and with one for all."""
        several = [False, True] if len(self.columns) > 1 and not self.exclusive else [True]
        return [self.fit("equal", True), *(self.fit(method, each) for method in METHODS[1:] for each in several)]

    def gain(self, blend: Blend, other: Blend) -> tuple[float, float]:
        """By how much a blend's honest score is better than another's, and the difference's standard error.

        The error is the bootstrap's over essays, on the same draws for both; weights are not fitted anew.
        """
        differences = self.sign * (other.draws - blend.draws)
        return self.sign * (other.honest - blend.honest), float(np.nanstd(differences, ddof=1))

    def choose(self, blends: Sequence[Blend], method: str | None = None) -> Blend:
        """The honestly best blend of a method; with none named, a method beyond equal must earn its place.

        The methods stand in the order of `METHODS`; each takes the place of the one chosen before it only where it is
        honestly better by more than the standard error, so that noise leaves weights equal, or shrunk.
        """
        best = {each: min((b for b in blends if b.method == each), key=self._loss) for each in METHODS}
        if method:
            return best[method]
        chosen = best["equal"]
        for blend in best.values():
            gain, error = self.gain(blend, chosen)
            chosen = blend if gain > error else chosen
        return chosen

    def adds(self, blend: Blend) -> np.ndarray:
        """By how much each member makes the honest score better, (M,); a member without weight, by how much it would.

        The others are weighed anew without it, with the ridge of all essays; after greedy selection their weights
        are only brought back to a sum of 1. NaN for the only member.
        """
        within = blend.weights.any(0)
        values_of = self.subsets(blend)

        def loss(members: np.ndarray) -> float:
            return self.sign * self.score(values_of(members)).overall

        out, whole, every = np.full(self.size, np.nan), loss(within), np.arange(self.size)
        for member in every:
            other = within ^ (every == member)
            if other.any():
                out[member] = (loss(other) - whole) * (1 if within[member] else -1)
        return out

    def subsets(self, blend: Blend) -> Callable[[np.ndarray], np.ndarray]:
        """From some members, (M,) bool, to their honest blend (N, K): weighed as in `blend`, with its ridge."""
        sums, counts = self.products.without(None, blend.shared)
        ridge = shrunk_weights(sums, counts)[1] if blend.method == "shrunk" else 0.0
        return lambda members: self._honest(lambda fold: self._weights_of(blend, members, ridge, fold))

    def order(self, blend: Blend, price: np.ndarray) -> list[int]:
        """The members that have weight, the one first that lowers the squared error most for its price, and so on.

        Each is taken beside the members before it, their weights brought to a sum of 1, as inference does; the first
        one beside the mean of the truths. An out-of-fold prediction comes from one fold's model, so the order is right
        for one fold of each run.

        Args:
            price: (M,), one fold's, above 0.
        """
        sums, counts = self.products.without(None, False)
        products, left = sums.sum(0) / counts.sum(), np.flatnonzero(blend.weights.any(0)).tolist()

        def loss(members: list[int]) -> float:
            weights = blend.weights[:, members]
            weights = np.where(weights.any(1, keepdims=True), weights, 1.0)
            weights = weights / weights.sum(1, keepdims=True)  # (K, m)
            within = products[:, np.array(members)[:, None], members]
            return float(np.sqrt(np.einsum("km,kmn,kn->k", weights, within, weights)).mean())

        order: list[int] = []
        lowest = float(self.target.std(0).mean())
        while left:
            losses = {member: loss([*order, member]) for member in left}
            taken = max(left, key=lambda member: (lowest - losses[member]) / price[member])
            order.append(taken)
            lowest = losses[taken]
            left.remove(taken)
        return order

    def _loss(self, blend: Blend) -> float:
        return self.sign * blend.honest

    def _weights(self, method: str, shared: bool, fold: int | None) -> np.ndarray:
        """Weights (K, M) fitted outside a fold, or on all essays."""
        if method == "equal":
            return np.full((len(self.columns), self.size), 1 / self.size)
        sums, counts = self.products.without(fold, shared)
        products = sums.sum(0) / counts.sum()
        if method == "shrunk":
            found = shrunk_weights(sums, counts)[0]
        elif method == "simplex":
            found = ridge_weights(products, 0.0, np.arange(self.size))
        else:
            found = self._greedy(shared, fold)
        return np.broadcast_to(found, (len(self.columns), self.size))

    def _weights_of(self, blend: Blend, members: np.ndarray, ridge: float, fold: int) -> np.ndarray:
        """Weights (K, M) as in `blend`, of some members, (M,) bool, fitted outside a fold."""
        if blend.method in ("equal", "greedy"):
            weights = np.maximum(blend.weights, 1e-12) * members  # 1e-12 keeps a column whose only members left
            return weights / weights.sum(1, keepdims=True)
        sums, counts = self.products.without(fold, blend.shared)
        found = ridge_weights(sums.sum(0) / counts.sum(), ridge, np.flatnonzero(members))
        return np.broadcast_to(found, blend.weights.shape)

    def _greedy(self, shared: bool, fold: int | None) -> np.ndarray:
        sums, counts = self.products.without(fold, False)
        products = sums.sum(0) / counts.sum()  # (K, M, M)
        each = [slice(None)] if shared else [slice(k, k + 1) for k in range(len(self.columns))]
        losses = [self._metric_losses(s, fold) if self.by_metric else squared_losses(products[s]) for s in each]
        return np.stack([greedy_weights(of_columns, self.size) for of_columns in losses])

    def _metric_losses(self, columns: slice, fold: int | None) -> Callable[[np.ndarray], np.ndarray]:
        """The metric as the losses of `greedy_weights`."""
        rows = np.ones(len(self.folds), bool) if fold is None else self.folds != fold
        members, truth, names = self.formed[:, rows, columns], self.truth[rows, columns], self.columns[columns]

        def losses(counts: np.ndarray) -> np.ndarray:
            total, taken = np.tensordot(counts, members, 1), counts.sum() + 1
            blends = ((total + member) / taken for member in members)
            if self.form == "logits":
                blends = (probabilities_of(blend, self.exclusive) for blend in blends)
            scores = [self.metric.score(truth, blend, names, self.exclusive).overall for blend in blends]
            return self.sign * np.array(scores)

        return losses

    def _honest(self, weights: Callable[[int], np.ndarray]) -> np.ndarray:
        """Blends (N, K) of each fold's essays under the weights for this fold."""
        out = np.empty(self.truth.shape)
        for fold in self.products.folds:
            rows = self.folds == fold
            out[rows] = np.einsum("mnk,km->nk", self.formed[:, rows], weights(fold))
        return self._restored(out)

    def _blend(self, weights: np.ndarray) -> np.ndarray:
        return np.einsum("mnk,km->nk", self.formed, weights)

    def _restored(self, blended: np.ndarray) -> np.ndarray:
        return out_of_form(self.form, blended, self.predicted, self.exclusive)

    def draw_scores(self, values: np.ndarray) -> np.ndarray:
        """Scores on draws of the essays with replacement, the same draws for all; NaN where a metric has no value."""
        finished, draw, scores = self.finish(values), np.random.default_rng(2), np.full(_DRAWS, np.nan)
        for at in range(_DRAWS):
            rows = draw.integers(len(values), size=len(values))
            try:
                score = self.metric.score(self.truth[rows], finished[rows], self.columns, self.exclusive)
            except Fb3Error:  # a draw without positives has no AUC
                continue
            scores[at] = score.overall
        return scores


def split(size: int, groups: Sequence[str] | None = None, parts: int = FOLDS, seed: int = 0) -> np.ndarray:
    """Numbers (N,) of a random split, the same for the same size; rows of a group stand in one part."""
    codes = np.arange(size) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    return (np.random.default_rng(seed).permutation(codes.max() + 1) % parts)[codes]


def _stretched(truth: np.ndarray, blend: np.ndarray) -> np.ndarray:
    """Truths (N, K) with the blend's mean, stretched until the blend's slope on them is 1."""
    t, b = truth - truth.mean(0), blend - blend.mean(0)
    slope = (b * b).mean(0) / np.maximum((b * t).mean(0), 0.1 * b.std(0) * t.std(0) + 1e-12)
    return blend.mean(0) + slope * t
