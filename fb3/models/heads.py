"""Heads: the pooled vector to scores."""

import torch
from torch import Tensor, nn

from fb3.recipe.model import LinearHeadSettings, MultiSampleHeadSettings

WEIGHT_STD = 0.002  # small, so that the first predictions are the bias's: the targets' means


class Linear(nn.Module):
    """One linear layer.

    Args:
        width: of the pooled vector, D.
        targets: outputs, K for scores.
    """

    def __init__(self, width: int, targets: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, targets)

    def start_at(self, bias: Tensor) -> None:
        """Starts at the task's first bias (outputs,): without it a small encoder spends an epoch on the means."""
        with torch.no_grad():
            self.linear.bias.copy_(bias)
            self.linear.weight.normal_(0.0, WEIGHT_STD)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)  # (B, outputs)


class MultiSampleDropout(Linear):
    """Mean of the linear layer over several dropout masks; plain linear at inference (Inoue 2019, arXiv:1905.09788).

    Args:
        width: of the pooled vector, D.
        targets: outputs, K for scores.
        samples: masks a step.
        dropout: probability of a unit to be dropped.
    """

    def __init__(self, width: int, targets: int, samples: int, dropout: float) -> None:
        super().__init__(width, targets)
        self.samples = samples
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        if not self.training:
            return self.linear(pooled)
        return torch.stack([self.linear(self.dropout(pooled)) for _ in range(self.samples)]).mean(0)


def build_head(settings: LinearHeadSettings | MultiSampleHeadSettings, width: int, targets: int) -> Linear:
    """The head of a recipe."""
    if isinstance(settings, MultiSampleHeadSettings):
        return MultiSampleDropout(width, targets, settings.samples, settings.dropout)
    return Linear(width, targets)
