"""Losses of regression: (B, K) predictions and truths to a scalar."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.recipe.groups import RegressionTask

Criterion = Callable[[Tensor, Tensor], Tensor]
_TINY = 1e-9  # the root has no gradient at 0


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


def quantile(share: float) -> Criterion:
    """The pinball loss, least where predictions are the `share` quantile (Koenker & Bassett 1978)."""

    def loss(predicted: Tensor, truth: Tensor) -> Tensor:
        error = truth - predicted
        return torch.maximum(share * error, (share - 1.0) * error).mean()

    return loss


def huber(delta: float) -> Criterion:
    """A parabola within `delta` of the truth, a line beyond (Huber 1964)."""
    return lambda predicted, truth: F.huber_loss(predicted, truth, delta=delta)


def build_criterion(settings: RegressionTask) -> Criterion:
    """The loss of a recipe, its further terms added with their weights."""
    known: dict[str, Criterion] = {
        "smooth_l1": F.smooth_l1_loss,
        "mse": F.mse_loss,
        "rmse": rmse,
        "mcrmse": mcrmse,
        "pearson": pearson,
        "huber": huber(settings.delta),
        "quantile": quantile(settings.quantile),
    }
    parts = [(1.0, known[settings.loss]), *((term.weight, known[term.kind]) for term in settings.terms)]
    if len(parts) == 1:
        return parts[0][1]
    return lambda predicted, truth: sum(weight * part(predicted, truth) for weight, part in parts)
