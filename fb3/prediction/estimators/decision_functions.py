"""Predictions of fitted estimators from the numbers in a fold folder, in numpy: inference has no scikit-learn."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fb3.errors import Fb3Error
from fb3.prediction.estimators.feature_matrix import Matrix
from fb3.recipe.estimator import EstimatorSettings

_AT_ONCE = 1024  # essays, whose kernel with all kept training essays is in memory at once
Tensors = Mapping[str, np.ndarray]


def svr(x: Matrix, fold: Tensors, kept: np.ndarray, folder: Path) -> np.ndarray:
    """Σ dual · exp(-gamma |x - kept|²) + intercept: one kernel for all K columns, each with its own dual (R, K)."""
    squares = (kept**2).sum(1)
    out = np.empty((len(x), fold["dual"].shape[1]))
    for start in range(0, len(x), _AT_ONCE):
        part = x[start : start + _AT_ONCE]
        distances = (part**2).sum(1)[:, None] + squares - 2 * part @ kept.T  # (B, R)
        out[start : start + _AT_ONCE] = np.exp(-fold["gamma"] * distances.clip(0)) @ fold["dual"]
    return out + fold["intercept"]


def linear(x: Matrix, fold: Tensors, kept: np.ndarray, folder: Path) -> np.ndarray:
    return x @ fold["coefficients"] + fold["intercept"]  # (N, K)


def logistic(x: Matrix, fold: Tensors, kept: np.ndarray, folder: Path) -> np.ndarray:
    return 1 / (1 + np.exp(-linear(x, fold, kept, folder).clip(-700, 700)))


def lightgbm(x: Matrix, fold: Tensors, kept: np.ndarray, folder: Path) -> np.ndarray:
    library = import_lightgbm()
    files = sorted(folder.glob("lightgbm*.txt"), key=lambda file: int(file.stem.removeprefix("lightgbm")))
    return np.stack([library.Booster(model_file=str(file)).predict(x) for file in files], 1)


def knn(x: Matrix, fold: Tensors, kept: np.ndarray, folder: Path) -> np.ndarray:
    """The mean truth (R, K) of the nearest kept essays by cosine, weighed by 1 / distance; an equal essay decides."""
    kept, out = _unit(kept), np.empty((len(x), fold["truths"].shape[1]))
    count = int(fold["neighbours"][0])
    for start in range(0, len(x), _AT_ONCE):
        distances = (1 - _unit(x[start : start + _AT_ONCE]) @ kept.T).clip(0, 2)  # (B, R)
        nearest = np.argpartition(distances, count - 1, 1)[:, :count]
        near = np.take_along_axis(distances, nearest, 1)
        equal = near == 0
        weights = np.where(equal.any(1, keepdims=True), equal, 1 / np.where(equal, 1, near))
        found = np.einsum("bn,bnk->bk", weights, fold["truths"][nearest])
        out[start : start + _AT_ONCE] = found / weights.sum(1, keepdims=True)
    return out


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), np.finfo(float).tiny)


def import_lightgbm():
    """The package; an Fb3Error where it is missing or broken."""
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise Fb3Error(f"estimator.kind=lightgbm: {error}; pip install 'fb3[lightgbm]'") from None
    return lightgbm


FUNCTIONS: dict[str, Callable[[Matrix, Tensors, np.ndarray, Path], np.ndarray]] = {
    "svr": svr,
    "ridge": linear,
    "logistic": logistic,
    "lightgbm": lightgbm,
    "knn": knn,
}


def estimate(
    settings: EstimatorSettings, x: Matrix, fold: Tensors, kept: np.ndarray, folder: Path, exclusive: bool
) -> np.ndarray:
    """Predictions (N, K) of a fold, not clipped.

    Args:
        settings: the recipe's estimator.
        x: the features, (N, D).
        fold: the fold's own numbers by name.
        kept: the features of the training essays that the fold keeps, (R, D); empty where it keeps none.
        folder: the fold folder.
        exclusive: whether the columns are classes, whose probabilities must add up to 1.
    """
    values = FUNCTIONS[settings.kind](x, fold, kept, folder)
    return values / np.maximum(values.sum(1, keepdims=True), 1e-12) if exclusive else values
