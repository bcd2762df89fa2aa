"""Towers: an encoder and its pooling, which turn tokens into a vector for each essay."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fb3.models.poolings.pooling import Pooling


def layer_states(out: Any) -> tuple[Tensor, ...]:
    """An encoder's states by layer, (B, T, D) each, lowest first.

    The last is `last_hidden_state`: where a norm follows the layers, versions of transformers differ in whether
    `hidden_states` ends before it or after it.
    """
    return (*out.hidden_states[:-1], out.last_hidden_state)


_READ = {
    "last": lambda out: out.last_hidden_state.float(),
    "layers": layer_states,  # the pooling makes them float32 one by one: all at once would fall out of a CPU's cache
    "pooler": lambda out: out.pooler_output.float(),
}


class Tower(nn.Module):
    """Encoder and pooling: essays to vectors.

    Only the encoder runs in low precision; pooling and head stay in float32: bf16 numbers near 3 are 0.016 apart.

    Args:
        encoder: a transformers encoder.
        pooling: turns token states into one vector.
        over_windows: turns the vectors of an essay's windows into one.
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling, over_windows: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.over_windows = over_windows
        self.reads = pooling.reads
        self.read = _READ[self.reads]
        self._arguments: dict[str, Any] = {"output_hidden_states": True} if self.reads == "layers" else {}
        self.most_tokens: int | None = None

    def encode(self, ids: Tensor, mask: Tensor) -> Any:
        """The encoder's own output for token ids and mask, (B, T) each; `read` takes the pooled part from it."""
        return self.encoder(input_ids=ids, attention_mask=mask, **self._arguments)

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors (B, D) of a batch; with `most_tokens`, a single essay's windows go in parts of so many tokens."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        count, tokens = inputs["input_ids"].shape
        if self.most_tokens and len(batch.get("windows", ())) == 1:
            count = max(1, self.most_tokens // tokens)
        parts = zip(*(tensor.split(count) for tensor in inputs.values()), strict=True)
        pooled = [self._pool_inputs(dict(zip(inputs, part, strict=True))) for part in parts]
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            return self.over_windows(torch.cat(pooled) if len(pooled) > 1 else pooled[0], batch)

    def _pool_inputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Ids and mask (W, T) of windows to vectors (W, D)."""
        out = self.encode(inputs["input_ids"], inputs["attention_mask"])
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            return self.pooling(self.read(out), self.pooling.token_weights(inputs))
