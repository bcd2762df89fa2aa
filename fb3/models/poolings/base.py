"""What all poolings share: token states to one vector an essay. None of them sees padding.

Each class says in `reads` what it wants of the encoder: "last" (states of the last layer, (B, T, D)), "layers" (all
layers' states, a tuple of (B, T, D), lowest first) or "pooler" (the encoder's own pooled output, (B, D)).
Shapes: B essays, T tokens, D width of the encoder, L layers. `mask` is (B, T), 1 on real tokens.
"""

from typing import Literal

from torch import Tensor, nn

Reads = Literal["last", "layers", "pooler"]


class Pooling(nn.Module):
    """What all poolings share.

    Args:
        hidden: width D of the encoder's states.
    """

    reads: Reads = "last"

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.width = hidden  # of the pooled vector


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, D), (B, T) -> (B, D)."""
    weight = mask.to(states.dtype).unsqueeze(-1)  # (B, T, 1)
    return (states * weight).sum(1) / weight.sum(1)
