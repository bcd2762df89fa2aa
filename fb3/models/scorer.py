"""`Scorer`: encoder, pooling, head; or two encoders and one head."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fb3.data.batches import SECOND_
from fb3.models.heads import LinearHead
from fb3.models.towers import Tower


class ModelOutput(NamedTuple):
    """scores (B, outputs) and pooled (B, D), what the head read, both float32.

    The task knows what the outputs are: K scores, or logits.
    """

    scores: Tensor
    pooled: Tensor


class Scorer(Tower):
    """Scores essays: encoder → pooling → what stands beside it → head.

    Args:
        tower: encoder and poolings, which become the scorer's own.
        beside: joins the text's statistics to the vector, or nothing.
        head: the vector to scores.
    """

    def __init__(self, tower: Tower, beside: nn.Module, head: LinearHead) -> None:
        super().__init__(tower.encoder, tower.pooling, tower.over_windows)
        self.beside = beside
        self.head = head

    def forward(self, batch: Mapping[str, Tensor]) -> ModelOutput:
        """A batch of `collate` to scores (B, outputs) and what the head read, (B, D)."""
        pooled = self.pool(batch)
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = self.beside(pooled, batch)
            return ModelOutput(self.head(pooled), pooled)

    def towers(self) -> dict[str, Tower]:
        """What the scorer has encoders in, by the prefix of their parameters' names."""
        return {"": self}


class StitchedScorer(Scorer):
    """Two encoders, each with its tokens and pooling, whose vectors side by side go to one head.

    Args:
        tower: the first.
        second: the second.
        beside: joins the text's statistics to the vectors, or nothing.
        head: the vectors to scores.
    """

    def __init__(self, tower: Tower, second: Tower, beside: nn.Module, head: LinearHead) -> None:
        super().__init__(tower, beside, head)
        self.second = second

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Both vectors of each essay, (B, D1 + D2)."""
        others = {name.removeprefix(SECOND_): value for name, value in batch.items() if name.startswith(SECOND_)}
        return torch.cat([super().pool(batch), self.second.pool(others)], dim=-1)

    def towers(self) -> dict[str, Tower]:
        return {"": self, "second.": self.second}
