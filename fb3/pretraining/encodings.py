"""Encodings: the states of a batch's inputs, each computed once, so that objectives share a forward pass."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from fb3.data.masking import IGNORED


class Encodings:
    """The states (B, T, D), in float32, of one batch in its several forms.

    Args:
        encoder: a transformers encoder.
        batch: a batch of `PretrainingTexts`.
    """

    def __init__(self, encoder: nn.Module, batch: Mapping[str, Tensor]) -> None:
        self.encoder, self.batch = encoder, batch
        self.mask = batch["attention_mask"]

    @cached_property
    def hidden(self) -> Tensor:
        """The states of the texts with hidden tokens, or of the plain ones where nothing is hidden."""
        return self.encode(self.batch["input_ids"])

    @cached_property
    def plain(self) -> Tensor:
        """The states of the texts with all their tokens."""
        return self.encode(self.plain_ids) if "labels" in self.batch else self.hidden

    @cached_property
    def plain_ids(self) -> Tensor:
        """All tokens, (B, T)."""
        labels = self.batch["labels"]
        return torch.where(labels == IGNORED, self.batch["input_ids"], labels)

    @cached_property
    def places(self) -> Tensor:
        """The hidden places, (B, T) bool."""
        return self.batch["labels"] != IGNORED

    def encode(self, ids: Tensor) -> Tensor:
        """A forward pass of its own, with new dropout masks."""
        return self.encoder(input_ids=ids, attention_mask=self.mask).last_hidden_state.float()
