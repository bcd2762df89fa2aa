"""A net that puts an essay's statistics beside the encoder's vector (Uto et al. 2020, COLING 2020)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fb3.data.text_statistics import NAMES

_UNITS = 64  # measured on FB3: 16 are 0.0004 worse, 256 are 0.0002 better
_CONSTANT = 1e-4  # standard deviation as a share of the mean: a smaller one is rounding
_MUTING_STD = 6e4  # divides any difference to about 0, and fp16 still holds it
_MOST = 4.0  # standard deviations: bounds an essay of one word, or of a thousand blank lines


class StatisticsNet(nn.Module):
    """Standardises the statistics, passes them through a small net, and appends the result to the pooled vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(NAMES), _UNITS)
        self.width = width + _UNITS
        self.register_buffer("mean", torch.zeros(len(NAMES)))  # the training essays'; saved with the weights
        self.register_buffer("std", torch.ones(len(NAMES)))

    def fit(self, table: np.ndarray) -> None:
        """Learns mean and standard deviation from the training essays' statistics (N, S), once, before the training."""
        mean, std = (torch.from_numpy(each) for each in (table.mean(0, np.float64), table.std(0, np.float64)))
        # A statistic that is constant in training taught its weights nothing; a huge std mutes it.
        std = torch.where(std > _CONSTANT * mean.abs().clamp(min=_CONSTANT), std, _MUTING_STD)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        standardised = ((batch["statistics"] - self.mean) / self.std).clamp(-_MOST, _MOST)  # (B, S)
        return torch.cat([pooled, nn.functional.gelu(self.linear(standardised))], dim=-1)  # (B, D + units)


class NoStatistics(nn.Module):
    """Stands in where there are no statistics: returns the pooled vector (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return pooled
