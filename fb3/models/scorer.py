"""`Scorer`: encoder, pooling, head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fb3.models.heads import Linear
from fb3.models.poolings import Pooling


class ModelOutput(NamedTuple):
    """scores (B, outputs) and pooled (B, D), both float32. The task knows what the outputs are: K scores, or logits."""

    scores: Tensor
    pooled: Tensor


_READ = {
    "last": lambda out: out.last_hidden_state.float(),
    "layers": lambda out: tuple(states.float() for states in out.hidden_states),
    "pooler": lambda out: out.pooler_output.float(),
}


class Scorer(nn.Module):
    """Scores essays: encoder → pooling → head.

    Only the encoder runs in low precision. Pooling and head stay in float32: a bf16 score near 3 has steps of 0.016.

    Args:
        encoder: a transformers encoder.
        pooling: token states to one vector.
        head: the vector to scores.
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling, head: Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head
        self._read = _READ[pooling.reads]
        self._arguments: dict[str, Any] = {"output_hidden_states": True} if pooling.reads == "layers" else {}

    def forward(self, batch: Mapping[str, Tensor]) -> ModelOutput:
        """input_ids and attention_mask, (B, T), to scores (B, outputs) and the pooled vectors (B, D)."""
        mask = batch["attention_mask"]
        out = self.encoder(input_ids=batch["input_ids"], attention_mask=mask, **self._arguments)
        with torch.autocast(mask.device.type, enabled=False):
            pooled = self.pooling(self._read(out), mask)
            return ModelOutput(self.head(pooled), pooled)
