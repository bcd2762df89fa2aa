"""The base of all poolings, which turn token states into one vector an essay. None of them sees padding.

Each class names in `reads` its input from the encoder: "last" (states of the last layer, (B, T, D)), "layers" (all
layers' states, a tuple of (B, T, D), lowest first, in the encoder's own precision) or "pooler" (the encoder's own
pooled output, (B, D)).
Shapes: B essays, T tokens, D width of the encoder, L layers. `mask` is (B, T), 1 on real tokens.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from torch import Tensor, nn

Reads = Literal["last", "layers", "pooler"]


class Pooling(nn.Module):
    """Token states to one vector an essay; subclasses define `forward(states, mask)`."""

    reads: Reads = "last"

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.width = hidden  # width of the pooled vector

    def token_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The mask that `forward` gets, (B, T): 0 on padding."""
        return batch["attention_mask"]

    def fit(self, rows: Iterable[np.ndarray]) -> None:
        """Learns from the training essays' token ids, (T_row,) each, once before training."""


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, in float32: (B, T, D), (B, T) -> (B, D)."""
    weight = mask.float().unsqueeze(1)  # (B, 1, T)
    return (weight @ states.float()).squeeze(1) / weight.sum(-1)
