"""What joins the essay's statistics to the encoder's vector (Uto et al. 2020, COLING 2020)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fb3.data.text_statistics import NAMES

_UNITS = 64  # measured on FB3: 16 are 0.0004 worse, 256 are 0.0002 better
_SAME = 1e-4  # of the mean: less is rounding
_SILENT = 6e4  # a standard deviation beside which all differences vanish, and that fp16 still holds
_FAR = 4.0  # standard deviations: an essay of one word, or of a thousand blank lines, is no further out than this


class StatisticsNet(nn.Module):
    """The statistics, standardised, through a small net, beside the pooled vector.

    Args:
        width: of the pooled vector, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(NAMES), _UNITS)
        self.width = width + _UNITS
        self.register_buffer("mean", torch.zeros(len(NAMES)))  # of the training essays; saved with the weights
        self.register_buffer("std", torch.ones(len(NAMES)))

    def fit(self, table: np.ndarray) -> None:
        """Learns mean and standard deviation from the training essays' statistics (N, S), once, before the training."""
        mean, std = (torch.from_numpy(each) for each in (table.mean(0, np.float64), table.std(0, np.float64)))
        # What is the same in all training essays has weights that never learned: it is to say nothing anywhere.
        std = torch.where(std > _SAME * mean.abs().clamp(min=_SAME), std, _SILENT)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        standardised = ((batch["statistics"] - self.mean) / self.std).clamp(-_FAR, _FAR)  # (B, S)
        return torch.cat([pooled, nn.functional.gelu(self.linear(standardised))], dim=-1)  # (B, D + units)


class NoStatistics(nn.Module):
    """Without statistics: the pooled vector as it is.

    Args:
        width: of the pooled vector, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return pooled
