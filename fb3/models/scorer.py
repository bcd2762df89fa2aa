"""`Scorer`: encoder, pooling, head; or two encoders and one head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fb3.data.batches import SECOND_
from fb3.models.heads import Linear
from fb3.recipe.model import Pooling


class ModelOutput(NamedTuple):
    """scores (B, outputs) and pooled (B, D), what the head read, both float32.

    The task knows what the outputs are: K scores, or logits.
    """

    scores: Tensor
    pooled: Tensor


def layer_states(out: Any) -> tuple[Tensor, ...]:
    """An encoder's states by layer, (B, T, D) each, lowest first.

    The last is what the encoder hands out: where the layers are followed by a norm, versions of transformers differ in
    whether `hidden_states` ends before it or after it.
    """
    return (*out.hidden_states[:-1], out.last_hidden_state)


_READ = {
    "last": lambda out: out.last_hidden_state.float(),
    "layers": layer_states,  # made float32 one by one: all at once fall out of a CPU's cache
    "pooler": lambda out: out.pooler_output.float(),
}


class Tower(nn.Module):
    """Encoder → pooling: essays to vectors.

    Only the encoder runs in low precision. What follows stays in float32: a bf16 score near 3 has steps of 0.016.

    Args:
        encoder: a transformers encoder.
        pooling: token states to one vector.
        over_windows: the vectors of an essay's windows to one.
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
        """Token ids and mask, (B, T) both, to the encoder's own output, of which `read` takes what is pooled."""
        return self.encoder(input_ids=ids, attention_mask=mask, **self._arguments)

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """A batch of `collate` to vectors (B, D). The windows of a single essay take `most_tokens` at once, if set."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        count, tokens = inputs["input_ids"].shape
        if self.most_tokens and len(batch.get("windows", ())) == 1:
            count = max(1, self.most_tokens // tokens)
        parts = zip(*(tensor.split(count) for tensor in inputs.values()), strict=True)
        pooled = [self._pool_inputs(dict(zip(inputs, part, strict=True))) for part in parts]
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            return self.over_windows(torch.cat(pooled) if len(pooled) > 1 else pooled[0], batch)

    def _pool_inputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Ids and mask (W, T) to (W, D)."""
        out = self.encode(inputs["input_ids"], inputs["attention_mask"])
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            return self.pooling(self.read(out), self.pooling.token_weights(inputs))


class Scorer(Tower):
    """Scores essays: encoder → pooling → what stands beside it → head.

    Args:
        tower: encoder and poolings, which become the scorer's own.
        beside: joins the text's statistics to the vector, or nothing.
        head: the vector to scores.
    """

    def __init__(self, tower: Tower, beside: nn.Module, head: Linear) -> None:
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

    def __init__(self, tower: Tower, second: Tower, beside: nn.Module, head: Linear) -> None:
        super().__init__(tower, beside, head)
        self.second = second

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Both vectors of each essay, (B, D1 + D2)."""
        others = {name.removeprefix(SECOND_): value for name, value in batch.items() if name.startswith(SECOND_)}
        return torch.cat([super().pool(batch), self.second.pool(others)], dim=-1)

    def towers(self) -> dict[str, Tower]:
        return {"": self, "second.": self.second}
