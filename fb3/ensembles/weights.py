"""Weights of an ensemble's members, fitted on out-of-fold predictions. No weight is negative, a column's sum to 1.

With such weights w the error of the blend is the same blend of the members' errors, w'(x - y). Its mean square is
w'Gw, for G the mean products of the members' errors, (M, M). Products add up over essays, so a fit on some of the
essays takes the sums of these and never reads a prediction again. Ridge towards equal weights is ridge alone: where
the weights sum to 1, |w - 1/M|² and |w|² differ by a constant.
"""

from collections.abc import Callable

import numpy as np

RIDGES = (0.005, 0.015, 0.05, 0.15, 0.5, 1.5)  # shares of the equal blend's mean squared error
STEPS = 25  # steps of greedy selection; more improve nothing measurable, by TabRepo's figures
_TRIED = 3  # members of least weight of which one leaves
_UNPAID = 2e-5  # relative rise of the loss that dropped members may cost together, 0.00001 of an MCRMSE of 0.44
_TIE = 1e-6  # relative difference of losses below which greedy selection takes a member that is in already
_JITTER = 1e-10  # share of the mean product added to the diagonal, so that members that are alike share their weight


def simplex_weights(products: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """The weights w >= 0 of sum 1 with the least w'Gw + ridge |w|²; (M, M) -> (M,).

    The sum is no constraint that the solver must know. For u = t w the loss u'Gu + (1 - 1'u)² is t² q + (1 - t)² with
    q = w'Gw, least at t = 1 / (1 + q), where it is q / (1 + q), which grows with q: so the best u >= 0 is a multiple of
    the best w. It is found by active sets (Lawson & Hanson 1974, chapter 23): a member enters where this lowers the
    loss, and leaves at weight 0.
    """
    size = len(products)
    scale = np.trace(products) / size or 1.0
    matrix = (products + ridge * np.eye(size)) / scale + _JITTER * np.eye(size) + 1.0
    u, within = np.zeros(size), np.zeros(size, bool)
    for _ in range(3 * size):
        descent = np.where(within, -np.inf, 1.0 - matrix @ u)
        if descent.max() <= 1e-12:
            break
        within[descent.argmax()] = True
        while (least := _on_subset(matrix, within)).min() < 0:
            leaving = least < 0
            step = (u[leaving] / (u[leaving] - least[leaving])).min()
            u = u + step * (least - u)
            within &= u > 1e-12
            u[~within] = 0.0
        u = least
    return u / u.sum()


def _on_subset(matrix: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Least squares with the members `within` alone, and 0 for the others, (M,)."""
    out = np.zeros(len(matrix))
    out[within] = np.linalg.solve(matrix[np.ix_(within, within)], np.ones(within.sum()))
    return out


def greedy_weights(losses: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """Greedy selection with replacement (Caruana et al. 2004): step by step the member that lowers the loss most.

    Args:
        losses: from counts (M,) of the members taken so far to the loss with each member taken once more, (M,).
        size: M.

    Returns:
        The shares (M,) of the members in the best of the blends on the way.
    """
    counts, best, lowest = np.zeros(size), np.zeros(size), np.inf
    for _ in range(STEPS):
        each = losses(counts)
        tied = np.flatnonzero(each <= each.min() + _TIE * abs(each.min()))
        chosen = max(tied, key=lambda member: (counts[member] > 0, -each[member], -member))
        counts[chosen] += 1
        if each[chosen] < lowest - _TIE * abs(lowest) or not np.isfinite(lowest):
            best, lowest = counts.copy(), each[chosen]
    return best / best.sum()


def squared_losses(products: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The losses of `greedy_weights` for errors: the mean over columns of their root mean squares.

    Args:
        products: (K, M, M), a column's error products each.
    """
    own = np.diagonal(products, axis1=1, axis2=2)  # (K, M)

    def losses(counts: np.ndarray) -> np.ndarray:
        crossed = products @ counts  # (K, M)
        squares = (crossed @ counts)[:, None] + 2 * crossed + own
        return np.sqrt(np.maximum(squares, 0)).mean(0) / (counts.sum() + 1)

    return losses


class ErrorProducts:
    """Products of the members' errors, summed over blocks of essays, from which any fit takes the blocks that it may.

    Args:
        errors: (M, N, K), predictions minus truths.
        folds: (N,) numbers of the folds.
        parts: (N,) numbers from 0 up of a second split, by which fits choose ridge and members within their folds.
    """

    def __init__(self, errors: np.ndarray, folds: np.ndarray, parts: np.ndarray) -> None:
        self.folds, (members, _, columns) = np.unique(folds), errors.shape
        shape = (len(self.folds), int(parts.max()) + 1)
        self.sums, self.counts = np.zeros((*shape, columns, members, members)), np.zeros(shape)
        for fold, part in np.ndindex(*shape):
            rows = (folds == self.folds[fold]) & (parts == part)
            block = errors[:, rows].transpose(2, 0, 1)  # (K, M, n)
            self.sums[fold, part], self.counts[fold, part] = block @ block.transpose(0, 2, 1), rows.sum()

    def without(self, fold: int | None, shared: bool) -> tuple[np.ndarray, np.ndarray]:
        """Sums (P, K, M, M) and counts (P,) of each part's essays outside a fold; of all essays for none.

        With `shared` the columns' sums are added up, so that K is 1.
        """
        keep = np.ones(len(self.folds), bool) if fold is None else self.folds != fold
        sums, counts = self.sums[keep].sum(0), self.counts[keep].sum(0)
        return (sums.sum(1, keepdims=True) / sums.shape[1] if shared else sums), counts


def shrunk_weights(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Weights shrunk towards equal ones; ridge and members are those with the least loss on parts not fitted on.

    Members leave one by one, as long as the loss stays within `_UNPAID` of the lowest: each costs time at inference,
    and ridge pulls all weights towards 1/M, so a useless one also takes weight from the others. Tried are the three of
    least weight, because to try all takes minutes.

    Args:
        sums: (P, K, M, M), a part's sums of error products each.
        counts: (P,) the parts' essays.

    Returns:
        Weights (K, M), the ridge, and the members that stayed.
    """
    products, kept = sums.sum(0) / counts.sum(), np.arange(sums.shape[2])
    unit = products.mean()  # the equal blend's mean squared error
    ridge = _best_ridge(sums, counts, unit)
    lowest = _loss_on_parts(sums, counts, ridge)
    while len(kept) > 1:
        least = np.argsort(ridge_weights(products, ridge, kept).sum(0)[kept], kind="stable")[:_TRIED]
        found = {at: _loss_on_parts(_of(sums, np.delete(kept, at)), counts, ridge) for at in least.tolist()}
        leaving = min(found, key=found.__getitem__)
        if found[leaving] > lowest * (1 + _UNPAID):
            break
        lowest, kept = min(lowest, found[leaving]), np.delete(kept, leaving)
    ridge = _best_ridge(_of(sums, kept), counts, unit)
    return ridge_weights(products, ridge, kept), ridge, kept


def ridge_weights(products: np.ndarray, ridge: float, members: np.ndarray) -> np.ndarray:
    """Weights (K, M) on the simplex of some of the members, 0 for the others; from (K, M, M)."""
    out = np.zeros(products.shape[:2])
    for column, of_column in enumerate(products):
        out[column, members] = simplex_weights(of_column[np.ix_(members, members)], ridge)
    return out


def _of(sums: np.ndarray, members: np.ndarray) -> np.ndarray:
    return sums[:, :, members[:, None], members]


def _best_ridge(sums: np.ndarray, counts: np.ndarray, unit: float) -> float:
    return min((share * unit for share in RIDGES), key=lambda ridge: _loss_on_parts(sums, counts, ridge))


def _loss_on_parts(sums: np.ndarray, counts: np.ndarray, ridge: float) -> float:
    """Mean over columns of the root mean squared error on each part, with weights fitted on the other parts."""
    total, squares = sums.sum(0), np.zeros(sums.shape[1])
    for part, count in zip(sums, counts, strict=True):
        fitted = (total - part) / (counts.sum() - count)
        for column, products in enumerate(fitted):
            w = simplex_weights(products, ridge)
            squares[column] += w @ part[column] @ w
    return float(np.sqrt(squares / counts.sum()).mean())
