"""Heads: the pooled vector to scores."""

import torch
from torch import Tensor, nn

from fb3.recipe.model import HeadSettings

WEIGHT_STD = 0.002  # small, so that the first predictions are the bias: the targets' means


class LinearHead(nn.Module):
    """One linear layer, from the pooled vector of `width` D to the outputs: K scores, or logits."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def start_at(self, bias: Tensor) -> None:
        """Sets the task's first bias (outputs,): without it a small encoder spends an epoch learning the means."""
        with torch.no_grad():
            self.linear.bias.copy_(bias)
            self.linear.weight.normal_(0.0, WEIGHT_STD)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)  # (B, outputs)


class MultiSampleDropoutHead(LinearHead):
    """Mean of the linear layer over `samples` dropout masks; plain at inference (Inoue 2019, arXiv:1905.09788)."""

    def __init__(self, width: int, outputs: int, samples: int, dropout: float) -> None:
        super().__init__(width, outputs)
        self.samples = samples
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        if not self.training:
            return self.linear(pooled)
        return torch.stack([self.linear(self.dropout(pooled)) for _ in range(self.samples)]).mean(0)


# Each is built from the vector's width, the number of outputs, and its settings by name; `kind` alone is left out.
HEADS = {"linear": LinearHead, "multi_sample_dropout": MultiSampleDropoutHead}


def build_head(settings: HeadSettings, width: int, outputs: int) -> LinearHead:
    """The head of a recipe."""
    return HEADS[settings.kind](width, outputs, **settings.model_dump(exclude={"kind"}))
