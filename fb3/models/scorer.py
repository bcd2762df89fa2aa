"""`Scorer`: encoder, pooling and head; `StitchedScorer`: two encoders and one head."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fb3.data.batches import SECOND_
from fb3.models.heads import LinearHead
from fb3.models.towers import Tower


class ModelOutput(NamedTuple):
    """Output of a scorer, float32: `scores` (B, outputs), K scores or logits; `pooled` (B, D), the head's input."""

    scores: Tensor
    pooled: Tensor


class Scorer(Tower):
    """Scores essays: encoder → pooling → text statistics → head.

    Args:
        tower: encoder and poolings, which become the scorer's own.
        beside: joins the text's statistics to the vector, or nothing.
        head: turns the vector into scores.
    """

    of_tokens_alone = True  # whether its encoders get token ids and a mask, which is what other backends compute

    def __init__(self, tower: Tower, beside: nn.Module, head: LinearHead) -> None:
        super().__init__(tower.encoder, tower.pooling, tower.over_windows)
        self.beside = beside
        self.head = head

    def forward(self, batch: Mapping[str, Tensor]) -> ModelOutput:
        """Scores (B, outputs) and pooled vectors (B, D) of a batch of `collate`."""
        pooled = self.pool(batch)
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = self.beside(pooled, batch)
            return ModelOutput(self.head(pooled), pooled)

    def towers(self) -> dict[str, Tower]:
        """The scorer's towers, one for each encoder, by the prefix of their parameters' names."""
        return {"": self}


class StitchedScorer(Scorer):
    """Two encoders, each with its own tokens and pooling; one head reads both vectors, concatenated."""

    def __init__(self, tower: Tower, second: Tower, beside: nn.Module, head: LinearHead) -> None:
        super().__init__(tower, beside, head)
        self.second = second

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Both vectors of each essay, concatenated, (B, D1 + D2)."""
        others = {name.removeprefix(SECOND_): value for name, value in batch.items() if name.startswith(SECOND_)}
        return torch.cat([super().pool(batch), self.second.pool(others)], dim=-1)

    def towers(self) -> dict[str, Tower]:
        return {"": self, "second.": self.second}
