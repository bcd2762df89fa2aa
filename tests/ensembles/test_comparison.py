"""Honest scores, choices and drops, on drawn members."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from fb3.ensembles.calibration import fit_calibration
from fb3.ensembles.comparison import METHODS, Stack, split
from fb3.targets.metrics import METRICS

COLUMNS = ["a", "b"]


def drawn(seed=0, essays=400, noise=(0.3, 0.4, 0.5)):
    """Truths (N, 2), and members (M, N, 2) that predict them from sight with noise of these sizes, as far from the mean
    as is best.
    """
    draw = np.random.default_rng(seed)
    truth = draw.normal(3, 0.7, (essays, 2))
    seen = [truth - 3 + draw.normal(0, size, truth.shape) for size in noise]
    return truth, np.stack([3 + s * 0.49 / (0.49 + size**2) for s, size in zip(seen, noise, strict=True)])


def test_weights_are_scored_on_other_folds_than_they_were_fitted_on():
    truth, members = drawn()
    folds = split(400)
    stack = Stack(members, truth, folds, METRICS["mcrmse"], COLUMNS)
    blend = stack.fit("simplex", shared=False)
    again = np.empty_like(truth)
    for fold in range(10):
        rows = folds == fold
        other = Stack(members[:, ~rows], truth[~rows], folds[~rows], METRICS["mcrmse"], COLUMNS)
        weights = other.fit("simplex", shared=False).weights  # fitted where the fold does not exist
        again[rows] = np.einsum("mnk,km->nk", members[:, rows], weights)
    np.testing.assert_allclose(blend.values, again, atol=1e-9)
    assert blend.honest == METRICS["mcrmse"].score(truth, again, COLUMNS).overall
    assert blend.same < blend.honest


def test_weights_without_each_fold_are_those_of_the_honest_blend():
    truth, members = drawn()
    folds = split(400)
    blend = Stack(members, truth, folds, METRICS["mae"], COLUMNS).fit("shrunk", shared=False)
    assert sorted(blend.without) == list(range(10))
    for fold, weights in blend.without.items():
        rows = folds == fold
        np.testing.assert_allclose(blend.values[rows], np.einsum("mnk,km->nk", members[:, rows], weights))


def test_calibration_is_a_line_a_column_scored_on_other_folds_than_it_was_fitted_on():
    truth, members = drawn()
    folds, shrunk = split(400), 3 + (members - 3) * np.array([0.5, 1.0])
    stack = Stack(shrunk, truth, folds, METRICS["rmse"], COLUMNS)
    blend = stack.fit("simplex", False)
    found, again = stack.calibrate(blend), np.empty_like(truth)
    for fold, column in np.ndindex(10, 2):
        rows = folds == fold
        line = np.polyfit(blend.values[~rows, column], truth[~rows, column], 1)
        again[rows, column] = np.polyval(line, blend.values[rows, column])
    np.testing.assert_allclose(found.values, again)
    assert found.honest == pytest.approx(METRICS["rmse"].score(truth, again, COLUMNS).overall)
    for column in range(2):
        line = np.polyfit(blend.values[:, column], truth[:, column], 1)
        np.testing.assert_allclose(found.calibration[:, column], line)
    gain, error = stack.gain(found, blend)
    assert gain > 3 * error > 0
    assert found.title == "simplex, a weight a column, calibrated"


def test_a_column_that_goes_against_the_truths_keeps_its_values():
    x = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    np.testing.assert_array_equal(fit_calibration(-x, x), [[1, 1], [0, 0]])


def test_truths_of_a_fold_do_not_reach_its_own_blend():
    truth, members = drawn()
    folds, other = split(400), truth.copy()
    other[folds == 3] += 5
    for method in METHODS:
        one, two = (Stack(members, t, folds, METRICS["rmse"], COLUMNS).fit(method, False) for t in (truth, other))
        np.testing.assert_allclose(one.values[folds == 3], two.values[folds == 3], atol=1e-9)


def test_the_standard_error_is_the_one_of_paired_differences():
    truth, members = drawn(essays=1000)
    stack = Stack(members, truth, split(1000), METRICS["mae"], COLUMNS)
    equal, simplex = stack.fit("equal", True), stack.fit("simplex", False)
    gain, error = stack.gain(simplex, equal)
    each = (np.abs(equal.values - truth) - np.abs(simplex.values - truth)).mean(1)
    assert gain == pytest.approx(each.mean())
    assert error == pytest.approx(each.std(ddof=1) / np.sqrt(1000), rel=0.15)


def test_the_default_drops_a_useless_member_and_says_what_each_adds():
    truth, members = drawn()
    random = np.random.default_rng(1).normal(3, 0.7, (1, 400, 2))
    stack = Stack(np.concatenate([members, random]), truth, split(400), METRICS["mcrmse"], COLUMNS)
    chosen = stack.choose(stack.fit_all())
    assert chosen.method == "shrunk"
    assert not chosen.weights[:, 3].any()
    adds = stack.adds(chosen)
    assert adds[0] > adds[1] > adds[2] > 0 >= adds[3]


def test_the_default_is_equal_where_members_are_alike():
    truth, members = drawn(noise=(0.4,) * 5, essays=200)
    stack = Stack(members, truth, split(200), METRICS["mcrmse"], COLUMNS)
    blends = stack.fit_all()
    assert stack.choose(blends).method == "equal"
    assert {stack.choose(blends, method).method for method in METHODS} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_ranks_are_blended_for_auc_whatever_the_members_scales(method):
    truth, members = drawn(essays=600)
    truth = (truth > 3.5).astype(float)
    members = 1 / (1 + np.exp(3 - members))
    metric = METRICS["mean_column_auc"]
    plain = Stack(members, truth, split(600), metric, COLUMNS).fit(method, False)
    curved = Stack(members ** np.array([1, 3, 5])[:, None, None], truth, split(600), metric, COLUMNS)
    curved = curved.fit(method, False)
    np.testing.assert_allclose(plain.weights, curved.weights)
    assert plain.honest == pytest.approx(curved.honest, abs=1e-9)
    if method == "equal":
        means = np.stack([np.mean([rankdata(m[:, k]) for m in members], axis=0) for k in range(2)], axis=1)
        each = [roc_auc_score(truth[:, k], means[:, k]) for k in range(2)]
        assert plain.honest == pytest.approx(np.mean(each), abs=1e-4)  # sums of ranks that tie differ by rounding
    assert 0 < plain.values.min() < plain.values.max() < 1


@pytest.mark.parametrize("name", ["log_loss", "accuracy"])
def test_classes_have_one_weight_a_member_so_that_probabilities_sum_to_1(name):
    draw = np.random.default_rng(0)
    label = draw.integers(3, size=300)
    logits = np.eye(3)[label] * 2 + draw.normal(0, 1, (4, 300, 3)) * np.array([1, 1.5, 2, 6])[:, None, None]
    members = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    stack = Stack(members, np.eye(3)[label], split(300), METRICS[name], ["x", "y", "z"], exclusive=True)
    blends = stack.fit_all()
    assert len(blends) == 4
    for blend in blends:
        np.testing.assert_allclose(blend.values.sum(1), 1)
        assert (blend.weights == blend.weights[0]).all()
    equal, *others = blends
    assert all(stack.gain(blend, equal)[0] > 0 for blend in others)


def test_inference_begins_with_what_lowers_the_error_most_for_its_price():
    truth, members = drawn(noise=(0.3, 0.3, 0.6))
    members[1] = members[0]
    stack = Stack(members, truth, split(400), METRICS["mcrmse"], COLUMNS)
    equal = stack.fit("equal", True)

    def gains(before, price):  # each member taken beside those of `before`, by the mean of their predictions
        start = (
            truth.std(0).mean() if not before else METRICS["mcrmse"].formula(truth, members[before].mean(0), False)[0]
        )
        after = [METRICS["mcrmse"].formula(truth, members[[*before, each]].mean(0), False)[0] for each in range(3)]
        return [(start - loss) / each for loss, each in zip(after, price, strict=True)]

    for price in ([1, 1.01, 1], [1, 1.01, 0.01], [5, 5.05, 1]):
        order, before = stack.order(equal, np.array(price)), []
        assert sorted(order) == [0, 1, 2]
        for member in order:
            found = gains(before, price)
            assert found[member] >= max(found[each] for each in range(3) if each not in before) - 1e-9
            before.append(member)
    blend = equal._replace(weights=np.array([[0.5, 0, 0.5], [1, 0, 0]]))
    assert stack.order(blend, np.ones(3)) == [0, 2]


def test_groups_stay_together_in_a_split():
    groups = [f"g{number % 30}" for number in range(200)]
    parts = split(200, groups)
    assert all(
        len({part for part, other in zip(parts, groups, strict=True) if other == group}) == 1 for group in groups
    )
    assert set(parts) == set(range(10))
