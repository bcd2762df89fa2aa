"""Losses of regression: each takes (B, K) predictions and truths to a scalar."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fb3.recipe.task import RegressionSettings
from fb3.tasks.base import row_weighted

# Losses that are means over essays take reduction="none" too, as torch's do, for essays that have weights.
Loss = Callable[..., Tensor]
_TINY = 1e-9  # the root has no gradient at 0
_ROWS = 256  # rows compared with all others at once: an evaluation has more, and all pairs at once would fill memory


def rmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared error of the whole batch. (A root of each element would be an L1 loss.)"""
    return torch.sqrt(F.mse_loss(predicted, truth) + _TINY)


def mcrmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean over columns of the root of the batch's mean squared error: FB3's metric, on a batch."""
    return torch.sqrt(((predicted - truth) ** 2).mean(0) + _TINY).mean()


def pearson(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 less the mean correlation of the columns, 0 to 2. A column without spread counts as uncorrelated."""
    a, b = predicted - predicted.mean(0), truth - truth.mean(0)
    correlation = (a * b).sum(0) / torch.sqrt((a**2).sum(0) * (b**2).sum(0) + _TINY)
    return 1.0 - correlation.mean()


def rank(predicted: Tensor, truth: Tensor) -> Tensor:
    """RankNet (Burges et al. 2005): mean of log(1 + exp(-(p_i - p_j))) over all pairs of a column with t_i > t_j.

    0 where no pair differs. The predictions' level does not count.
    """
    total, pairs = 0.0, 0
    for some, true in zip(predicted.split(_ROWS), truth.split(_ROWS), strict=True):  # (R, K)
        above = true[:, None] > truth  # (R, B, K)
        total = total + (F.softplus(predicted - some[:, None]) * above).sum()
        pairs = pairs + above.sum()
    return total / pairs.clamp_min(1)


def quantile(share: float) -> Loss:
    """The pinball loss, least where predictions are the `share` quantile (Koenker & Bassett 1978)."""

    def loss(predicted: Tensor, truth: Tensor, reduction: str = "mean") -> Tensor:
        error = truth - predicted
        losses = torch.maximum(share * error, (share - 1.0) * error)
        return losses.mean() if reduction == "mean" else losses

    return loss


def huber(delta: float) -> Loss:
    """A parabola within `delta` of the truth, a line beyond (Huber 1964)."""
    return partial(F.huber_loss, delta=delta)


# The losses by their names in task.loss.
LOSSES: dict[str, Callable[[RegressionSettings], Loss]] = {
    "smooth_l1": lambda settings: F.smooth_l1_loss,
    "mse": lambda settings: F.mse_loss,
    "rmse": lambda settings: rmse,
    "mcrmse": lambda settings: mcrmse,
    "huber": lambda settings: huber(settings.delta),
    "pearson": lambda settings: pearson,
    "quantile": lambda settings: quantile(settings.quantile),
    "rank": lambda settings: rank,
}


class Criterion(nn.Module):
    """Losses added with weights that change linearly over the run, or that are learned.

    Args:
        settings: the losses and their weights. Where the weights of a single loss are learned, each column has one.
        columns: the number K of target columns.
    """

    def __init__(self, settings: RegressionSettings, columns: int) -> None:
        super().__init__()
        self._losses = [LOSSES[name](settings) for name in settings.losses()]
        learned = settings.weighting == "uncertainty"
        self._by_column = learned and len(self._losses) == 1
        self._weigh = Uncertainty(settings.weighed(columns)) if learned else None
        ends = [(t.weight, t.weight if t.end_weight is None else t.end_weight) for t in settings.terms]
        self._ends = [(1.0, 1.0), *ends]  # weights at the start and at the end of the run

    def forward(self, predicted: Tensor, truth: Tensor, progress: Tensor | float = 1.0) -> Tensor:
        """(B, K) predictions and truths to the sum."""
        return self.together(self.parts(predicted, truth), progress)

    def parts(self, predicted: Tensor, truth: Tensor, weight: Tensor | None = None) -> list[Tensor]:
        """The losses that are added, a scalar each; with the rows' weights (B,) where there are any."""
        pairs = [(predicted, truth)]
        if self._by_column:
            pairs = list(zip(predicted.split(1, 1), truth.split(1, 1), strict=True))
        if weight is not None:
            each = (loss(*pair, reduction="none") for loss in self._losses for pair in pairs)
            return [row_weighted(losses, weight).mean() for losses in each]
        return [loss(*pair) for loss in self._losses for pair in pairs]

    def together(self, parts: Sequence[Tensor], progress: Tensor | float = 1.0) -> Tensor:
        """The sum at a progress, the share of the run that is done, 0-1; an evaluation counts as the end."""
        if self._weigh:
            return self._weigh(torch.stack(list(parts)))
        return sum((a + (b - a) * progress) * part for part, (a, b) in zip(parts, self._ends, strict=True))


class Uncertainty(nn.Module):
    """sum_i exp(-s_i) L_i + s_i, with a log variance s_i trained for each of `count` losses; at rest s_i is log L_i."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(count))

    def forward(self, losses: Tensor) -> Tensor:
        s = self.log_variances.to(losses.device)  # an evaluation computes its losses on the CPU
        return (torch.exp(-s) * losses + s).sum()  # losses, s: (n,)
