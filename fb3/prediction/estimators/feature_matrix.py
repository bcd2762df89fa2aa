"""The matrix that an estimator reads: vectors and statistics on one scale, terms beside them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Union

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_CONSTANT = 1e-4  # standard deviation as a share of the mean: a smaller one is rounding
_MOST = 4.0  # standard deviations: bounds a text of one word, or of a thousand blank lines

Matrix = Union[np.ndarray, "csr_matrix"]  # (N, features) float64


def fit_scales(blocks: Sequence[np.ndarray], statistics: np.ndarray | None, weight: float) -> dict[str, np.ndarray]:
    """The mean and the factor of each dense column, from the training essays.

    A block of vectors is multiplied by one number, so that its variances add up to 1, because directions with little
    variance hold mostly noise. Statistics have units of their own: each is standardised, all of them together have the
    variance `weight`. One that is constant in training taught nothing, and says nothing.
    """
    means, factors = [], []
    for block in blocks:
        wide = block.astype(np.float64)
        means.append(wide.mean(0))
        factors.append(np.full(wide.shape[1], 1 / max(np.sqrt(wide.var(0).sum()), np.finfo(float).tiny)))
    if statistics is not None:
        wide = statistics.astype(np.float64)
        means.append(wide.mean(0))
        deviations = wide.std(0)
        varies = deviations > _CONSTANT * np.maximum(np.abs(means[-1]), _CONSTANT)
        share = np.sqrt(weight / max(1, varies.sum()))
        factors.append(np.where(varies, share / np.where(varies, deviations, 1.0), 0.0))
    return {"mean": np.concatenate([*means, []]), "factor": np.concatenate([*factors, []])}


def scaled(
    blocks: Sequence[np.ndarray], statistics: np.ndarray | None, fold: Mapping[str, np.ndarray], weight: float
) -> np.ndarray:
    """Vectors and statistics by `fit_scales`, (N, D) float64; statistics far from the training essays' are cut."""
    count = len(statistics) if statistics is not None else len(blocks[0]) if blocks else 0
    parts = [block.astype(np.float64) for block in (*blocks, *([] if statistics is None else [statistics]))]
    dense = (np.concatenate([*parts, np.zeros((count, 0))], 1) - fold["mean"]) * fold["factor"]
    if statistics is not None:
        most = _MOST * np.sqrt(weight / max(1, (fold["factor"][-statistics.shape[1] :] > 0).sum()))
        dense[:, -statistics.shape[1] :] = dense[:, -statistics.shape[1] :].clip(-most, most)
    return dense


def beside(dense: np.ndarray, terms: Sequence["csr_matrix"]) -> Matrix:
    """Dense columns and terms side by side; sparse where there are terms."""
    if not terms:
        return dense
    from scipy.sparse import csr_matrix, hstack

    return hstack([csr_matrix(dense), *terms] if dense.shape[1] else terms, format="csr")
