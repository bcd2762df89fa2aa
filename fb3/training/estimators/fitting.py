"""Fits estimators by scikit-learn and LightGBM, and writes down the numbers with which inference predicts."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from fb3.errors import Fb3Error
from fb3.prediction.estimators.decision_functions import import_lightgbm
from fb3.prediction.estimators.feature_matrix import Matrix
from fb3.recipe.estimator import EstimatorSettings
from fb3.system.progress import progress

ALPHAS = np.logspace(-3, 3, 13)
_LEAVE_ONE_OUT = 5000  # essays, at most, on which ridge's penalty is chosen
KERNEL_AT_ONCE = 12_000  # essays, whose kernel of 8 bytes a pair is in memory: 1.2 GB
_TOLERANCE = 1e-5  # libsvm stops there; its own 1e-3 lets two fits of the same essays differ by 1e-4
_SURE = 1e-3  # distance from 0 and 1 of the share that stands in for a label which all training essays have


class Fitted(NamedTuple):
    """tensors: the estimator's numbers by name. rows: which training essays it keeps, of those it was fitted on; none:
    it keeps none. files: its text files by name.
    """

    tensors: dict[str, np.ndarray]
    rows: np.ndarray | None = None
    files: Mapping[str, str] = MappingProxyType({})


def fit(settings: EstimatorSettings, x: Matrix, y: np.ndarray, labels: bool, seed: int, title: str) -> Fitted:
    """Fits an estimator to N training essays, with a progress bar over the K columns.

    Args:
        settings: the recipe's estimator.
        x, y: features (N, D) and truths (N, K), float64.
        labels: whether the truths are labels, so that probabilities are wanted.
        seed: decides which features LightGBM's trees look at, and which essays ridge's penalty is chosen on.
        title: names the progress bar.

    Raises:
        Fb3Error: the estimator cannot be fitted to these truths, or its package is missing.
    """
    with progress(title, y.shape[1]) as advance:
        return _FITS[settings.kind](settings, x, y, labels, seed, advance)


def _svr(settings: Any, x: np.ndarray, y: np.ndarray, labels: bool, seed: int, advance: Callable) -> Fitted:
    """One machine a column, on truths of mean 0 and deviation 1; all share the kernel, computed once where it fits."""
    from sklearn.svm import SVR

    gamma = settings.gamma or 1 / max(x.shape[1] * x.var(), np.finfo(float).tiny)
    means, deviations = y.mean(0), np.where(y.std(0) > 0, y.std(0), 1.0)
    dual, intercept, at_once = np.zeros(y.shape), np.empty(y.shape[1]), len(x) <= KERNEL_AT_ONCE
    squares = (x**2).sum(1)
    given = np.exp(-gamma * (squares[:, None] + squares - 2 * x @ x.T).clip(0)) if at_once else x
    for column in range(y.shape[1]):
        kernel = {"kernel": "precomputed"} if at_once else {"kernel": "rbf", "gamma": gamma}
        machine = SVR(**kernel, C=settings.C, epsilon=settings.epsilon, tol=_TOLERANCE, cache_size=1000)
        machine.fit(given, (y[:, column] - means[column]) / deviations[column])
        dual[machine.support_, column] = machine.dual_coef_[0] * deviations[column]
        intercept[column] = machine.intercept_[0] * deviations[column] + means[column]
        advance()
    rows = np.flatnonzero(dual.any(1))
    return Fitted({"dual": dual[rows], "intercept": intercept, "gamma": np.array([gamma])}, rows=rows)


def _ridge(settings: Any, x: Matrix, y: np.ndarray, labels: bool, seed: int, advance: Callable) -> Fitted:
    from sklearn.linear_model import Ridge, RidgeCV

    alphas = np.full(y.shape[1], settings.alpha)
    if settings.alpha is None:
        some = np.sort(np.random.default_rng(seed).permutation(x.shape[0])[:_LEAVE_ONE_OUT])
        found = RidgeCV(ALPHAS, alpha_per_target=True).fit(x[some], y[some]).alpha_
        alphas = np.broadcast_to(found, alphas.shape).astype(float)
    options = {"solver": "sparse_cg", "tol": 1e-8} if issparse(x) else {}
    machine = Ridge(alphas, **options).fit(x, y)
    advance(y.shape[1])
    coefficients = np.reshape(machine.coef_, (y.shape[1], -1)).T.copy()
    return Fitted({"coefficients": coefficients, "intercept": np.ravel(machine.intercept_), "alpha": alphas})


def _logistic(settings: Any, x: Matrix, y: np.ndarray, labels: bool, seed: int, advance: Callable) -> Fitted:
    from sklearn.linear_model import LogisticRegression

    if ((y != 0) & (y != 1)).any():
        raise Fb3Error("estimator.kind=logistic: some labels are shares between 0 and 1; take lightgbm or knn")
    coefficients, intercept = np.zeros((x.shape[1], y.shape[1])), np.empty(y.shape[1])
    for column in range(y.shape[1]):
        share = y[:, column].mean()
        if share in (0.0, 1.0):
            intercept[column] = np.log(abs(share - _SURE) / abs(1 - share - _SURE))
        else:
            machine = LogisticRegression(C=settings.C, max_iter=2000).fit(x, y[:, column])
            coefficients[:, column], intercept[column] = machine.coef_[0], machine.intercept_[0]
        advance()
    return Fitted({"coefficients": coefficients, "intercept": intercept})


def _lightgbm(settings: Any, x: Matrix, y: np.ndarray, labels: bool, seed: int, advance: Callable) -> Fitted:
    library, texts = import_lightgbm(), {}
    options = {
        "objective": "cross_entropy" if labels else "regression",
        "num_leaves": settings.leaves,
        "learning_rate": settings.rate,
        "min_data_in_leaf": settings.least_essays,
        "feature_fraction": settings.columns,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbose": -1,
    }
    for column in range(y.shape[1]):
        booster = library.train(options, library.Dataset(x, y[:, column]), settings.rounds)
        texts[f"lightgbm{column}.txt"] = booster.model_to_string()
        advance()
    return Fitted({}, files=texts)


def _knn(settings: Any, x: np.ndarray, y: np.ndarray, labels: bool, seed: int, advance: Callable) -> Fitted:
    advance(y.shape[1])
    neighbours = np.array([min(settings.neighbours, len(x))])
    return Fitted({"truths": y, "neighbours": neighbours}, rows=np.arange(len(x)))


_FITS = {"svr": _svr, "ridge": _ridge, "logistic": _logistic, "lightgbm": _lightgbm, "knn": _knn}
