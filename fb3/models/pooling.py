"""Poolings: token states to one vector an essay. None of them sees padding.

Each class says in `reads` what it wants of the encoder: "last" (states of the last layer, (B, T, D)), "layers" (all
layers' states, a tuple of (B, T, D), lowest first) or "pooler" (the encoder's own pooled output, (B, D)).
Shapes: B essays, T tokens, D width of the encoder, L layers. `mask` is (B, T), 1 on real tokens.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fb3.errors import Fb3Error
from fb3.recipe.groups import LayersPooling, PlainPooling

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


class ClsPooling(Pooling):
    """The first token's state (Devlin et al. 2018, arXiv:1810.04805)."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[:, 0]


class MeanPooling(Pooling):
    """Mean over real tokens (Reimers & Gurevych 2019, arXiv:1908.10084)."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(states, mask)


class MaxPooling(Pooling):
    """Largest value of each unit over real tokens."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf).amax(1)


class MinPooling(Pooling):
    """Smallest value of each unit over real tokens."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states.masked_fill(~mask.bool().unsqueeze(-1), torch.inf).amin(1)


class AttentionPooling(Pooling):
    """Weighs each token by a learned score (Lin et al. 2017, arXiv:1703.03130)."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(states).squeeze(-1)  # (B, T)
        scores = scores.masked_fill(~mask.bool(), -torch.inf)
        return torch.einsum("bt,btd->bd", scores.softmax(-1), states)


class WeightedLayerPooling(Pooling):
    """Learned mix of the last n layers, then the mean over tokens (Peters et al. 2018, arXiv:1802.05365)."""

    reads = "layers"

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__(hidden)
        self.weights = nn.Parameter(torch.zeros(layers))  # softmax of zeros: all alike at the start

    def forward(self, states: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        means = [masked_mean(layer, mask) for layer in states[-len(self.weights) :]]
        return torch.einsum("l,lbd->bd", self.weights.softmax(0), torch.stack(means))


class ConcatLayersPooling(Pooling):
    """The last n layers' token means side by side (after Devlin et al. 2018, arXiv:1810.04805, table 7)."""

    reads = "layers"

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__(hidden)
        self.layers = layers
        self.width = hidden * layers

    def forward(self, states: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        return torch.cat([masked_mean(layer, mask) for layer in states[-self.layers :]], dim=-1)  # (B, nD)


class PoolerPooling(Pooling):
    """The encoder's own pooler output, as it comes."""

    reads = "pooler"

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states


PLAIN = {
    "cls": ClsPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
    "min": MinPooling,
    "attention": AttentionPooling,
    "pooler": PoolerPooling,
}
LAYERED = {"weighted_layer": WeightedLayerPooling, "concat_layers": ConcatLayersPooling}


def build_pooling(settings: PlainPooling | LayersPooling, hidden: int, depth: int) -> Pooling:
    """The pooling of a recipe.

    Args:
        settings: its kind and settings.
        hidden: width D of the encoder.
        depth: layers of the encoder.

    Raises:
        Fb3Error: more layers are asked for than the encoder has.
    """
    if isinstance(settings, PlainPooling):
        return PLAIN[settings.kind](hidden)
    if settings.layers > depth:
        raise Fb3Error(f"model.pooling.layers={settings.layers}: the encoder has {depth} layers; give at most {depth}")
    return LAYERED[settings.kind](hidden, settings.layers)
