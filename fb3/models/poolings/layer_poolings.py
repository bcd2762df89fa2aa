"""Poolings over the states of several layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fb3.models.poolings.pooling import Pooling, masked_mean


class WeightedLayerPooling(Pooling):
    """Learned mix of the last n layers, then the mean over tokens (Peters et al. 2018, arXiv:1802.05365)."""

    reads = "layers"

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__(hidden)
        self.weights = nn.Parameter(torch.zeros(layers))  # softmax of zeros: equal weights at the start

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


class LayerMeansPooling(Pooling):
    """Token means of some layers side by side, for estimators on fixed features.

    Args:
        hidden: width of the encoder's states.
        layers: counted from the top, 1 the last.
        normalise: whether each mean is scaled to length 1.
    """

    def __init__(self, hidden: int, layers: Sequence[int], normalise: bool) -> None:
        super().__init__(hidden)
        self.layers, self.normalise = layers, normalise
        self.reads = "last" if tuple(layers) == (1,) else "layers"
        self.width = hidden * len(layers)

    def forward(self, states: Tensor | tuple[Tensor, ...], mask: Tensor) -> Tensor:
        taken = [states] if self.reads == "last" else [states[-layer] for layer in self.layers]
        means = [masked_mean(layer, mask) for layer in taken]
        return torch.cat([nn.functional.normalize(m, dim=-1) for m in means] if self.normalise else means, dim=-1)


class ParallelLayersPooling(Pooling):
    """A small net of its own for each of the last n layers' token means, then their mean (PSUM, arXiv:2010.11731)."""

    reads = "layers"

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__(hidden)
        self.nets = nn.ModuleList(_net(hidden) for _ in range(layers))

    def forward(self, states: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        taken = states[-len(self.nets) :]
        return torch.stack([net(masked_mean(s, mask)) for net, s in zip(self.nets, taken, strict=True)]).mean(0)


class HierarchicalLayersPooling(ParallelLayersPooling):
    """Parallel nets chained from the top down: each reads its layer's mean plus the result above (HSUM, ibid.)."""

    def forward(self, states: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        result, results = 0.0, []
        for net, layer in zip(self.nets, reversed(states[-len(self.nets) :]), strict=True):
            result = net(masked_mean(layer, mask) + result)
            results.append(result)
        return torch.stack(results).mean(0)  # (B, D)


def _net(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.LayerNorm(hidden))


class RecurrentLayersPooling(Pooling):
    """An LSTM or GRU over the first tokens of the last n layers, lowest first (Song et al. 2020, arXiv:2002.04815)."""

    reads = "layers"

    def __init__(self, hidden: int, layers: int, net: type[nn.RNNBase]) -> None:
        super().__init__(hidden)
        self.layers = layers
        self.net = net(hidden, hidden, batch_first=True)

    def forward(self, states: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        firsts = torch.stack([layer[:, 0].float() for layer in states[-self.layers :]], dim=1)  # (B, n, D)
        return self.net(firsts)[0][:, -1]


class AttentionLayersPooling(Pooling):
    """Attention over the first tokens of the last n layers (Song et al. 2020, arXiv:2002.04815)."""

    reads = "layers"

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__(hidden)
        self.layers = layers
        self.query = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, states: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        firsts = torch.stack([layer[:, 0].float() for layer in states[-self.layers :]], dim=1)  # (B, n, D)
        weights = torch.softmax(firsts @ self.query, dim=-1)  # (B, n)
        return self.out(torch.einsum("bn,bnd->bd", weights, firsts))
