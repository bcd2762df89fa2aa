import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score, f1_score

from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.decision import METHODS
from fb3.targets.decisions import Decision, compare_decisions, decide, decision_of, fit_decision, honest_score, unfitted
from fb3.targets.metrics import METRICS, one_hot

QWK, F1 = METRICS["qwk"], METRICS["macro_f1"]
WHOLE = ["rounding", "quantiles", "search"]


def essays(seed, rows, columns=1, ties=False):
    """Whole-number truths from 1 on and predictions that shrink to their mean, as those of a regression do."""
    draw = np.random.default_rng(seed)
    truth = np.minimum(draw.poisson(1.5, (rows, columns)) + 1, 6).astype(float)
    truth[truth == 5] = 6  # a number that no truth has
    predicted = 2.5 + 0.5 * (truth - 2.5) + draw.normal(0, 0.4, truth.shape)
    return truth, (np.round(predicted) if ties else predicted).astype(np.float32)


def classes(seed=0, rows=600):
    """Unequal classes, one-hot, and probabilities that lean to the large one."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(3, rows, p=[0.85, 0.1, 0.05])
    logits = draw.normal(0, 1, (rows, 3)) + np.log([0.85, 0.1, 0.05]) + 1.5 * np.eye(3)[truth]
    return one_hot(truth, 3), (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("method", WHOLE)
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
def test_decided_numbers_grow_with_predictions_and_are_labels(method, seed, rows, ties):
    truth, predicted = essays(seed, rows, 2, ties)
    decision = fit_decision(METHODS[method], QWK, truth, predicted)
    for labels, cuts in zip(decision.labels, decision.cuts, strict=False):
        assert all(a < b for row in (labels, cuts) for a, b in pairwise(row))
    wanted = np.random.default_rng(seed).normal(3, 4, (50, 2)).astype(np.float32)
    decided = decide(decision, np.sort(wanted, axis=0))
    assert decided.dtype == np.float32
    assert (np.diff(decided, axis=0) >= 0).all()
    for column, truths in zip(decided.T, truth.T, strict=True):
        known = np.arange(truths.min(), truths.max() + 1) if method == "rounding" else truths
        assert set(column) <= set(known)
    assert fit_decision(METHODS[method], QWK, truth, predicted) == decision, "the same fit again"
    again = Decision.from_json(json.loads(json.dumps(decision.to_json())), "decision.json")
    assert again == decision
    assert np.array_equal(decide(again, predicted), decide(decision, predicted))


def test_quantiles_give_each_number_its_share_of_the_truths():
    truth, predicted = essays(1, 1000)
    decided = decide(fit_decision(METHODS["quantiles"], QWK, truth, predicted), predicted)
    for label in np.unique(truth):
        assert abs((decided == label).sum() - (truth == label).sum()) <= 1


def test_search_finds_no_less_than_nelder_mead_and_moves_no_tie():
    from fb3.targets.decisions import _search

    truth, predicted = essays(2, 400)
    labels = np.unique(truth)

    def kappa(cuts):
        return cohen_kappa_score(truth[:, 0], labels[np.searchsorted(np.sort(cuts), predicted[:, 0], "right")],
                                 labels=range(1, 7), weights="quadratic")  # fmt: skip

    start = np.array(fit_decision(METHODS["quantiles"], QWK, truth, predicted).cuts[0])
    simplex = minimize(lambda cuts: -kappa(cuts), start, method="Nelder-Mead")
    found = kappa(_search(labels, truth[:, 0], predicted[:, 0].astype(float)))
    assert found >= -simplex.fun - 1e-9
    assert found > kappa(start)


def test_class_scaling_helps_small_classes_and_c_0_is_argmax():
    truth, p = classes()
    scaled = fit_decision(METHODS["class_scaling"], F1, truth, p)
    plain = decide(fit_decision(METHODS["argmax"], F1, truth, p), p)
    assert np.array_equal(plain, one_hot(p.argmax(1), 3))
    assert scaled.factors[0] < scaled.factors[1] < scaled.factors[2]
    decided = decide(scaled, p)
    assert (decided.sum(1) == 1).all()
    c = (scaled.factors[0] - 1) * truth[:, 0].sum()
    assert np.array_equal(decided.argmax(1), (p * (c / truth.sum(0) + 1)).argmax(1))

    def f1(table):
        return f1_score(truth.argmax(1), table.argmax(1), labels=[0, 1, 2], average="macro", zero_division=0)

    assert f1(decided) > f1(plain) + 0.02
    certain = one_hot(truth.argmax(1), 3)
    assert set(fit_decision(METHODS["class_scaling"], F1, truth, certain).factors) == {1.0}, "the smallest c of equals"


def test_thresholds_are_each_labels_own_and_rare_labels_keep_half():
    draw = np.random.default_rng(0)
    truth = (draw.random((800, 3)) < [0.3, 0.1, 0.0]).astype(float)
    p = np.clip(0.2 * truth + draw.normal(0.2, 0.08, truth.shape), 0, 1).astype(np.float32)
    decision = fit_decision(METHODS["thresholds"], F1, truth, p)
    cuts = [cut for (cut,) in decision.cuts]
    assert 0.2 < cuts[0] < cuts[1] < 0.4
    assert cuts[2] == 0.5
    decided = decide(decision, p)
    assert np.array_equal(decided, p >= np.array(cuts))
    for k in range(2):
        best = max(f1_score(truth[:, k], p[:, k] >= cut) for cut in np.linspace(0, 1, 201))
        assert f1_score(truth[:, k], decided[:, k]) > best - 0.02


def test_an_honest_score_is_of_essays_that_the_decision_has_not_seen():
    """Cut points that are searched in noise score well where they were fitted alone."""
    folds, gaps = np.arange(60) % 3, []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        truth, noise = draw.integers(1, 5, (60, 1)).astype(float), draw.normal(2.5, 0.5, (60, 1))
        scores = compare_decisions({m: METHODS[m] for m in WHOLE}, QWK, truth, noise, folds, ["a"])
        gaps.append(scores["search"][0] - scores["search"][1])
    assert np.mean(gaps) > 0.04
    by_hand = np.empty_like(noise)
    for fold in range(3):
        rows = folds == fold
        decision = fit_decision(METHODS["quantiles"], QWK, truth[~rows], noise[~rows])
        by_hand[rows] = decide(decision, noise[rows])
    assert scores["quantiles"][1] == QWK.score(truth, by_hand, ["a"]).overall
    halves = honest_score(METHODS["search"], QWK, truth, noise, folds * 0, ["a"])
    assert halves == honest_score(METHODS["search"], QWK, truth, noise, folds * 0 + 7, ["a"])
    assert halves not in scores["search"]


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        ([], "none"),
        (["metric=spearman"], "none"),
        (["metric=qwk"], "quantiles"),
        (["metric=accuracy"], "rounding"),
        (["metric={file: a.py, function: f, needs: decisions}"], "rounding"),
        (["metric=qwk", "decision={kind: cut_points, method: search}"], "search"),
        (["decision={kind: rounding}"], "rounding"),
    ],
)
def test_the_metric_and_the_task_choose_a_decision(overrides, method):
    assert decision_of(load_recipe("tiny", overrides)) == METHODS[method]


def test_decisions_that_do_not_fit_are_refused():
    with pytest.raises(
        Fb3Error, match=r"decision.kind=argmax does not suit task.kind=regression; take one of cut_points"
    ):
        load_recipe("tiny", ["decision={kind: argmax}"])
    with pytest.raises(Fb3Error, match=r"column 'a' has truths that are no whole numbers, such as 2.5; set decision="):
        fit_decision(METHODS["quantiles"], QWK, np.array([[1.0], [2.5]]), np.ones((2, 1)), ["a"])
    with pytest.raises(Fb3Error, match="class_scaling is tuned by a metric of decisions, and AUC is none"):
        fit_decision(METHODS["class_scaling"], METRICS["auc"], *classes())
    with pytest.raises(Fb3Error, match="fitted for 3 columns, got 2"):
        decide(Decision("class_scaling", factors=(1.0, 2.0, 3.0)), np.ones((1, 2)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "kind None: no decision of this version"),
        ({"kind": "cut_point"}, "did you mean 'cut_points'"),
        ({"kind": "cut_points"}, "cut_points does not go with nothing"),
        ({"kind": "argmax", "factors": [1]}, r"argmax does not go with \['factors'\]"),
        ({"kind": "cut_points", "labels": [[1, 2, 3]], "cuts": [[1.5]]}, "one cut less than labels"),
        ({"kind": "cut_points", "labels": [[1, 2, 3]], "cuts": [[2.5, 1.5]]}, "must increase"),
        ({"kind": "rounding", "labels": [[]]}, "a column has no labels"),
        ({"kind": "rounding", "labels": [[10**400]]}, "hold no numbers"),
        ({"kind": "rounding", "labels": [[1, float("nan")]]}, "must increase"),
        ({"kind": "class_scaling", "factors": [1, 0]}, "factors must be above 0"),
        ({"kind": "class_scaling", "factors": ["1", 2]}, "hold no numbers"),
        ({"kind": "thresholds", "labels": 3}, "hold no numbers"),
    ],
)
def test_a_broken_decision_is_named(content, words):
    with pytest.raises(Fb3Error, match=f"^decision.json: .*{words}"):
        Decision.from_json(content, "decision.json")


def test_rounding_stays_within_a_range_that_ends_at_halves():
    rounded = decide(unfitted(METHODS["rounding"], 1, 0.5, 6.5), np.array([[0.5], [3.4], [6.5]]))
    assert rounded.tolist() == [[1.0], [3.0], [6.0]]
