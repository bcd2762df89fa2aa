"""Poolings over the last layer's token states."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fb3.models.poolings.pooling import Pooling, masked_mean


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


class PoolerPooling(Pooling):
    """The encoder's own pooler output, unchanged."""

    reads = "pooler"

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states


class MeanMaxPooling(Pooling):
    """Mean and largest value of each unit, side by side."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.width = 2 * hidden

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        largest = states.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf).amax(1)
        return torch.cat([masked_mean(states, mask), largest], dim=-1)  # (B, 2D)


class DensePooling(Pooling):
    """The mean through a linear layer and tanh (Reimers & Gurevych 2019, arXiv:1908.10084)."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.dense(masked_mean(states, mask)))


class TokenWeightedPooling(Pooling):
    """Mean over real tokens, each weighted by its inverse document frequency (Spärck Jones 1972)."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__(hidden)
        self.register_buffer("rarity", torch.ones(vocabulary))  # saved with the weights

    def fit(self, rows: Iterable[np.ndarray]) -> None:
        """Sets ln((1 + N) / (1 + n)) + 1 for a token that occurs in n of N essays, scikit-learn's smoothed IDF."""
        rows = list(rows)
        found = np.zeros(len(self.rarity))
        for row in rows:
            found[np.unique(row)] += 1
        self.rarity.copy_(torch.from_numpy(np.log((1 + len(rows)) / (1 + found)) + 1))

    def token_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["attention_mask"] * self.rarity[batch["input_ids"]]  # (B, T)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(states, mask)


class TargetTokensPooling(Pooling):
    """The states of the targets' own tokens, at the K positions in `prompt`, side by side."""

    def __init__(self, hidden: int, prompt: range) -> None:
        super().__init__(hidden)
        self.prompt = prompt
        self.width = hidden * len(prompt)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[:, self.prompt.start : self.prompt.stop].flatten(1)  # (B, KD)


class GeneralisedMeanPooling(Pooling):
    """(mean of x^p)^(1/p) over the real tokens' positive parts x; p is learned, from `power` on (Radenovic et al. 2017,
    arXiv:1711.02512)."""

    def __init__(self, hidden: int, power: float) -> None:
        super().__init__(hidden)
        self.power = nn.Parameter(torch.tensor(float(power)))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        power = self.power.clamp(1.0, 8.0)
        positive = states.masked_fill(~mask.bool().unsqueeze(-1), 0.0).clamp(min=1e-6)  # the paper's floor
        largest = positive.amax(1, keepdim=True).detach()  # factored out, so that no power of a small value underflows
        return masked_mean((positive / largest).pow(power), mask).pow(1.0 / power) * largest.squeeze(1)
