"""Weights against scipy and brute force, and the properties that every fit has."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from fb3.ensembles.weights import (
    ErrorProducts,
    greedy_weights,
    ridge_weights,
    shrunk_weights,
    simplex_weights,
    squared_losses,
)


def errors_of(seed, members=6, essays=300, columns=2):
    """Errors (M, N, K) with a common part, as real members have, of different sizes."""
    draw = np.random.default_rng(seed)
    own = draw.normal(size=(members, essays, columns)) * draw.uniform(0.2, 1.0, (members, 1, 1))
    return draw.normal(size=(essays, columns)) * 0.5 + own


def products_of(errors):
    return np.einsum("mnk,lnk->kml", errors, errors) / errors.shape[1]


@pytest.mark.parametrize("seed", range(8))
def test_simplex_weights_are_those_of_nnls_and_of_a_general_solver(seed):
    errors = errors_of(seed, members=8, columns=1)[:, :, 0]
    found = simplex_weights(errors @ errors.T / 300)
    heavy = 1e5  # the sum as one more equation
    other, _ = nnls(np.vstack([errors.T, np.full((1, 8), heavy)]), np.append(np.zeros(300), heavy))
    np.testing.assert_allclose(found, other / other.sum(), atol=1e-6)
    general = minimize(
        lambda w: ((w @ errors) ** 2).mean() + 0.1 * ((w - 1 / 8) ** 2).sum(),
        np.full(8, 1 / 8),
        method="SLSQP",
        bounds=[(0, 1)] * 8,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(simplex_weights(errors @ errors.T / 300, 0.1), general.x, atol=2e-5)


def test_greedy_selection_is_brute_force_over_each_step():
    errors = errors_of(3, members=4)

    def loss(counts):
        blend = np.tensordot(counts, errors, 1) / counts.sum()
        return np.sqrt((blend**2).mean(0)).mean()

    counts, path = np.zeros(4), []
    for _ in range(25):
        counts = min((counts + np.eye(4)[member] for member in range(4)), key=loss)
        path.append(counts)
    best = min(path, key=loss)
    found = greedy_weights(squared_losses(products_of(errors)), 4)
    np.testing.assert_allclose(found, best / best.sum())
    grid = min((np.array(c, float) for c in product(range(11), repeat=4) if sum(c) == 10), key=loss)
    assert loss(found) <= loss(grid) + 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_shrunk_weights_lie_between_equal_and_simplex_and_sum_to_1(seed):
    errors = errors_of(seed)
    products = ErrorProducts(errors, np.arange(300) % 3, np.arange(300) // 3 % 5)
    weights, ridge, kept = shrunk_weights(*products.without(1, shared=False))
    assert weights.shape == (2, 6)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1)
    assert not np.delete(weights, kept, axis=1).any()
    rest = errors[:, np.arange(300) % 3 != 1]
    np.testing.assert_allclose(weights, ridge_weights(products_of(rest), ridge, kept), atol=1e-9)
    np.testing.assert_allclose(ridge_weights(products_of(rest), 1e6, np.arange(6)), 1 / 6, atol=1e-3)


def test_a_member_that_knows_nothing_leaves_and_the_blend_is_the_one_without_it():
    errors = errors_of(1, essays=2000, columns=1)
    useless = errors.mean(0) + np.random.default_rng(9).normal(size=(1, 2000, 1)) * 2
    split = np.zeros(2000, int), np.arange(2000) % 5
    weights, _, kept = shrunk_weights(*ErrorProducts(np.concatenate([errors, useless]), *split).without(None, True))
    without, *_ = shrunk_weights(*ErrorProducts(errors, *split).without(None, True))
    assert 6 not in kept
    np.testing.assert_allclose(weights[:, :6], without, atol=0.03)


def test_a_member_that_is_there_twice_changes_little():
    errors = errors_of(2, columns=1)
    split = np.zeros(300, int), np.arange(300) % 5
    once = shrunk_weights(*ErrorProducts(errors, *split).without(None, True))[0][0]
    twice = shrunk_weights(*ErrorProducts(errors[[*range(6), 0]], *split).without(None, True))[0][0]
    blends = [w @ e[:, :, 0] for w, e in ((once, errors), (twice, errors[[*range(6), 0]]))]
    assert np.abs(blends[0] - blends[1]).max() < 0.1
    alone = [simplex_weights(products_of(e)[0]) for e in (errors, errors[[*range(6), 0]])]
    np.testing.assert_allclose(alone[0] @ errors[:, :, 0], alone[1] @ errors[[*range(6), 0]][:, :, 0], atol=1e-4)
