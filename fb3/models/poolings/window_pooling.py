"""Pooling over the windows of a long essay (Dai et al. 2022, arXiv:2204.06683)."""

from collections.abc import Mapping

from torch import Tensor, nn

from fb3.models.poolings.pooling import Pooling


class WindowPooling(nn.Module):
    """Pools an essay's window vectors, (B, V, D) with a mask (B, V), by a pooling that takes windows for tokens."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of all windows of the batch, (W, D), to (B, D)."""
        return self.pooling(pooled[batch["windows"]], batch["window_mask"])


class SingleWindow(nn.Module):
    """Stands in where there are no windows: each essay is one input."""

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return pooled
