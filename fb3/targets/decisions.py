"""Decisions: from averaged predictions to whole numbers, labels or one class, the same in scoring and at inference.

A decision is fitted on out-of-fold predictions. Its score on these is too good, so `honest_score` fits it on other
folds than the scored one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from fb3.errors import Fb3Error, nearest
from fb3.recipe import Recipe
from fb3.recipe.decision import METHODS, DecisionSettings
from fb3.targets.metrics import Metric, metric_of, one_hot

_HALVES = 10  # random halves over which fits are averaged: on one set of essays the best cut is partly luck
_SCALES = 40  # values of c that class scaling tries, beside 0

FITTED = ("cut_points", "class_scaling", "thresholds")  # kinds that learn from predictions
KINDS = tuple(dict.fromkeys(settings.kind for settings in METHODS.values()))


@dataclass(frozen=True)
class Decision:
    """A fitted decision.

    kind: its kind in a recipe. labels: for each column the values that it decides between, increasing; of rounding the
    lowest and the highest. cuts: for each column the lowest prediction of each label but the first. factors: of each
    class, for class scaling.
    """

    kind: str
    labels: tuple[tuple[float, ...], ...] = ()
    cuts: tuple[tuple[float, ...], ...] = ()
    factors: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON can hold it; `read_json` of a file gives `from_json` its content back."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: object) -> "Decision":
        """Reads what `to_json` gave; other keys are left to others.

        Raises:
            Fb3Error: an unknown kind, or numbers that are none or not in order; names `source`.
        """
        kind = content.get("kind")
        if kind not in KINDS:
            raise Fb3Error(f"{source}: kind {kind!r}: no decision of this version; {nearest(str(kind), KINDS)}")
        try:
            labels, cuts = (tuple(map(_numbers, content.get(name, []))) for name in ("labels", "cuts"))
            factors = _numbers(content.get("factors", []))
        except (TypeError, ValueError, OverflowError):
            raise Fb3Error(f"{source}: labels, cuts or factors hold no numbers; fit it again") from None
        decision = cls(kind, labels, cuts, factors)
        if problem := decision._problem():
            raise Fb3Error(f"{source}: {problem}; fit it again")
        return decision

    def _problem(self) -> str:
        """A reason why the decision cannot be applied, in words; empty where it can."""
        needed = {"rounding": {"labels"}, "cut_points": {"labels", "cuts"}, "thresholds": {"labels", "cuts"}}
        held = {field.name for field in fields(self) if field.name != "kind" and getattr(self, field.name)}
        if held != needed.get(self.kind, {"factors"} if self.kind == "class_scaling" else set()):
            return f"{self.kind} does not go with {sorted(held) or 'nothing'}"
        if not all(self.labels):
            return "a column has no labels"
        if not all(np.isfinite(row).all() and (np.diff(row) > 0).all() for row in (*self.labels, *self.cuts)):
            return "labels and cuts must increase"
        if self.cuts and [len(row) for row in self.labels] != [len(row) + 1 for row in self.cuts]:
            return "want one cut less than labels in each column"
        if not (np.isfinite(self.factors).all() and (np.array(self.factors) > 0).all()):
            return "factors must be above 0"
        return ""


def _numbers(row: Any) -> tuple[float, ...]:
    if any(isinstance(each, (bool, str)) for each in row):
        raise TypeError
    return tuple(float(each) for each in row)


def decide(decision: Decision, values: np.ndarray) -> np.ndarray:
    """Decided values, (N, K) float32, of averaged predictions (N, K).

    Whole numbers by rounding and cut points, 0 and 1 by thresholds, one 1 a row by argmax and class scaling.

    Raises:
        Fb3Error: the decision was fitted for another number of columns.
    """
    table = np.asarray(values, np.float64)
    known = len(decision.labels) or len(decision.factors)
    if known and known != table.shape[1]:
        raise Fb3Error(f"decision {decision.kind}: fitted for {known} columns, got {table.shape[1]}; fit it again")
    if decision.kind == "none":
        out = table
    elif decision.kind == "rounding":
        lowest, highest = (np.array([row[place] for row in decision.labels]) for place in (0, -1))
        out = np.clip(np.rint(table), lowest, highest)
    elif decision.cuts:
        pairs = zip(decision.labels, decision.cuts, table.T, strict=True)
        places = [(labels, np.searchsorted(cuts, column, side="right")) for labels, cuts, column in pairs]
        out = np.stack([np.array(labels)[place] for labels, place in places], axis=1)
    else:
        out = one_hot((table * (decision.factors or 1.0)).argmax(1), table.shape[1])
    return out.astype(np.float32)


def decision_of(recipe: Recipe) -> DecisionSettings:
    """The recipe's decision, or the one that its metric and kind of task ask for."""
    metric, task = recipe.metric, recipe.task.kind
    if recipe.decision or metric_of(metric).needs != "decisions":
        return recipe.decision or METHODS["none"]
    by_f1 = str(metric) in ("macro_f1", "f1_mean", "two_level_f1")
    if task == "classification":
        return METHODS["class_scaling" if by_f1 or metric == "balanced_accuracy" else "argmax"]
    if task == "multilabel":
        return METHODS["thresholds" if by_f1 or metric == "micro_f1" else "rounding"]
    return METHODS["quantiles" if metric == "qwk" else "rounding"]


def unfitted(settings: DecisionSettings, columns: int, lowest: float, highest: float) -> Decision:
    """The decision that stands in where none was fitted: rounding, the likeliest class, or 0.5 as threshold.

    lowest, highest: the range of whole numbers, which may be infinite.
    """
    if settings.kind in ("rounding", "cut_points"):
        return Decision("rounding", ((float(np.ceil(lowest)), float(np.floor(highest))),) * columns)
    if settings.kind == "thresholds":
        return Decision("thresholds", ((0.0, 1.0),) * columns, ((0.5,),) * columns)
    return Decision("argmax" if settings.kind == "class_scaling" else settings.kind)


def nearest_labels(decision: Decision) -> Decision:
    """The decision for a mean of truths, which cut points do not suit: they lie where a model's predictions do."""
    if decision.kind != "cut_points":
        return decision
    return replace(decision, cuts=tuple(tuple((np.array(row[:-1]) + row[1:]) / 2) for row in decision.labels))


def fit_decision(
    settings: DecisionSettings,
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    columns: Sequence[str] | None = None,
) -> Decision:
    """Fits a decision; the same arrays give the same one.

    Args:
        settings: its kind and method.
        metric: tunes class scaling; other kinds do not read it.
        truth: (N, K).
        predicted: (N, K), averaged predictions, not decided.
        columns: K names for errors.

    Raises:
        Fb3Error: truths to which the decision does not apply; names the column and the mend.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    names = list(columns or map(str, range(truth.shape[1])))
    if settings.kind in {"rounding", "cut_points"}:
        labels = [_whole_labels(column, name) for column, name in zip(truth.T, names, strict=True)]
    if settings.kind == "rounding":
        return Decision("rounding", tuple((row[0], row[-1])[: len(row)] for row in labels))
    if settings.kind == "cut_points":
        fit = _searched if settings.method == "search" else _quantiles
        triples = zip(labels, truth.T, predicted.T, strict=True)
        return Decision("cut_points", tuple(labels), tuple(fit(np.array(row), t, p) for row, t, p in triples))
    if settings.kind == "thresholds":
        cuts = [_mean_over_halves(_best_threshold, t, p) for t, p in zip(truth.T, predicted.T, strict=True)]
        return Decision("thresholds", ((0.0, 1.0),) * truth.shape[1], tuple(cuts))
    if settings.kind == "class_scaling":
        return _scaled(metric, truth, predicted, names)
    return Decision(settings.kind)


def _whole_labels(truth: np.ndarray, name: str) -> tuple[float, ...]:
    labels = np.unique(truth)
    if not np.array_equal(labels, np.rint(labels)):
        raise Fb3Error(
            f"decision: column {name!r} has truths that are no whole numbers, such as "
            f"{float(labels[labels != np.rint(labels)][0])}; set decision={{kind: none}}"
        )
    return tuple(labels.tolist())


def _quantiles(labels: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> tuple[float, ...]:
    """Cut points (L - 1,) between which the predictions have the shares of the truths."""
    shares = np.searchsorted(np.sort(truth), labels[1:]) / len(truth)  # share of the truths below each label
    return _increasing(np.quantile(predicted, shares))


def _increasing(cuts: np.ndarray) -> tuple[float, ...]:
    """Cut points with equal ones, which ties in the predictions give, moved up by the smallest step."""
    out = cuts.tolist()
    for place in range(1, len(out)):
        out[place] = max(out[place], float(np.nextafter(out[place - 1], np.inf)))
    return tuple(out)


def _mean_over_halves(
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray], truth: np.ndarray, predicted: np.ndarray
) -> tuple[float, ...]:
    """The mean of the cut points that `fit` finds on random halves, always the same ones; 0.5 where it finds none."""
    draw, size = np.random.default_rng(0), len(truth)
    halves = [draw.permutation(size)[: (size + 1) // 2] for _ in range(_HALVES)]
    found = np.array([fit(truth[half], predicted[half]) for half in halves])  # (halves, L - 1)
    found = found[np.isfinite(found).all(1)]
    return _increasing(found.mean(0)) if len(found) else (0.5,)


def _searched(labels: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> tuple[float, ...]:
    return _mean_over_halves(lambda t, p: _search(labels, t, p), truth, predicted)


def _search(labels: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Cut points (L - 1,) with the highest kappa that moving one of them at a time finds, from the quantiles on.

    With the essays in the order of their predictions a cut is a place in this order. Kappa needs the sums of d, d² and
    d·t alone, for decisions d and truths t, and these are linear in sums over the places before each cut: so all
    places of one cut are compared at once.
    """
    order = np.argsort(predicted, kind="stable")
    p, t = predicted[order], truth[order]
    below = np.concatenate([[0.0], np.cumsum(t)])  # (N + 1,), the truths' sum before each place
    between = np.concatenate([[False], p[1:] > p[:-1], [False]])  # (N + 1,), places that no tie crosses
    cuts = np.array(_quantiles(labels, truth, predicted))
    places = np.concatenate([[0], np.searchsorted(p, cuts), [len(p)]])
    moved = True
    while moved:
        moved = False
        for cut in range(1, len(labels)):
            low, high = places[cut - 1], places[cut + 1]
            tried = low + np.flatnonzero(between[low:high])
            tried = np.append(tried[tried > low], places[cut])
            kappas = _kappas(labels, places, cut, tried, t, below)
            best = int(kappas.argmax())
            if kappas[best] > kappas[-1] + 1e-12:
                places[cut], moved = tried[best], True
                cuts[cut - 1] = (p[tried[best] - 1] + p[tried[best]]) / 2
    return cuts


def _kappas(
    labels: np.ndarray, places: np.ndarray, cut: int, tried: np.ndarray, truth: np.ndarray, below: np.ndarray
) -> np.ndarray:
    """Kappa with one cut at each of the places `tried`, (M,), and the others where they are."""
    d, dd, dt = np.zeros((3, len(tried)))  # means of d, d² and d·t
    for place, label in enumerate(labels):
        start = tried if place == cut else places[place]
        end = tried if place == cut - 1 else places[place + 1]
        share = (end - start) / len(truth)
        d, dd = d + label * share, dd + label**2 * share
        dt = dt + label * (below[end] - below[start]) / len(truth)
    by_chance = truth.var() + dd - d**2 + (truth.mean() - d) ** 2
    return 2 * (dt - d * truth.mean()) / np.where(by_chance > 0, by_chance, np.inf)


def _best_threshold(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The threshold (1,) with the highest F1, half-way between neighbours; NaN where nothing is to be found."""
    order = np.argsort(-predicted, kind="stable")
    p, hits = predicted[order], np.cumsum(truth[order])
    if not hits[-1]:
        return np.array([np.nan])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + hits[-1])
    f1[:-1][p[1:] == p[:-1]] = -1.0  # a tie cannot be cut
    best = int(f1.argmax())
    return np.array([(p[best] + p[min(best + 1, len(p) - 1)]) / 2])


def _scaled(metric: Metric, truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Decision:
    """Factors c / n + 1 with the c that scores best, the smallest of equals; c = 0 is argmax."""
    if metric.needs != "decisions":
        raise Fb3Error(
            f"decision.kind=class_scaling is tuned by a metric of decisions, and {metric.title} is none; take argmax"
        )
    essays, sign = np.maximum(truth.sum(0), 1), -1 if metric.lower_is_better else 1

    def scaled(c: float) -> Decision:
        return Decision("class_scaling", factors=tuple((c / essays + 1).tolist()))

    def goodness(c: float) -> float:
        return sign * metric.score(truth, decide(scaled(c), predicted), names, exclusive=True).overall

    return scaled(max([0.0, *np.geomspace(0.1, 10 * len(truth), _SCALES).tolist()], key=goodness))


def honest_decisions(
    settings: DecisionSettings,
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    folds: np.ndarray,
    columns: Sequence[str],
) -> np.ndarray:
    """Decided values, (N, K), each row's by a fit on the other folds; of one fold alone by a fit on its other half.

    Args:
        settings: the decision's kind and method.
        metric: the competition's metric.
        truth: (N, K).
        predicted: (N, K), averaged predictions, not decided.
        folds: (N,) numbers of the folds.
        columns: K names.
    """
    if len(np.unique(folds)) == 1:
        folds = np.random.default_rng(0).permutation(len(folds)) % 2
    decided = np.empty(np.shape(predicted), np.float32)
    for fold in np.unique(folds):
        rows = folds == fold
        decision = fit_decision(settings, metric, truth[~rows], predicted[~rows], columns)
        decided[rows] = decide(decision, predicted[rows])
    return decided


def honest_score(
    settings: DecisionSettings,
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    folds: np.ndarray,
    columns: Sequence[str],
    exclusive: bool = False,
) -> float:
    """The metric of `honest_decisions` over all rows; `exclusive` where the columns are classes of one label."""
    decided = honest_decisions(settings, metric, truth, predicted, folds, columns)
    return metric.score(truth, decided, columns, exclusive).overall


def compare_decisions(
    tried: Mapping[str, DecisionSettings],
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    folds: np.ndarray,
    columns: Sequence[str],
    exclusive: bool = False,
) -> dict[str, tuple[float, float]]:
    """The scores of several decisions by their names: fitted and scored on the same essays, and `honest_score`."""
    scores = {}
    for name, settings in tried.items():
        decided = decide(fit_decision(settings, metric, truth, predicted, columns), predicted)
        same = metric.score(truth, decided, columns, exclusive).overall
        scores[name] = same, honest_score(settings, metric, truth, predicted, folds, columns, exclusive)
    return scores
