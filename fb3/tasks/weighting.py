"""Learned weights of losses (Kendall et al. 2018, arXiv:1705.07115). Free."""

import torch
from torch import Tensor, nn


class Uncertainty(nn.Module):
    """sum_i exp(-s_i) L_i + s_i, with a log variance s_i trained for each of n losses; at rest s_i is log L_i.

    Args:
        count: n.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(count))

    def forward(self, losses: Tensor) -> Tensor:
        s = self.log_variances.to(losses.device)  # an evaluation's losses are the CPU's
        return (torch.exp(-s) * losses + s).sum()  # losses, s: (n,)
