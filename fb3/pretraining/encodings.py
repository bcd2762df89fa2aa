"""Encodings: the states of a batch's inputs, each computed once, so that objectives share a forward pass."""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fb3.data.masking import IGNORED
from fb3.models.frame_embeddings import FrameEmbeddings, apart, with_frames
from fb3.models.pretraining_heads import HiddenFrames


class Learned(NamedTuple):
    """loss: the mean over the batch's rows, a scalar with a gradient, so that parts of a batch add up by their rows.
    measures: for validation, each a sum and a count: scalars that add up over batches.
    """

    loss: Tensor
    measures: dict[str, tuple[Tensor, Tensor]]


class Encodings:
    """The states (B, T, D), in float32, of one batch in its several forms.

    With frames, [CLS] frames text [SEP] go through the encoder, and these are the states of the text's places.

    Args:
        encoder: a transformers encoder.
        batch: a batch of `PretrainingTexts`.
        frames: embeddings of the batch's frames; none: the encoder reads the texts alone.
        hides: draws the frames that are hidden; none: all are shown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        batch: Mapping[str, Tensor],
        frames: FrameEmbeddings | None = None,
        hides: HiddenFrames | None = None,
    ) -> None:
        self.encoder, self.batch, self.frames, self.hides = encoder, batch, frames, hides
        self.mask = batch["attention_mask"]
        self.likeness: Tensor | None = None  # (B, B), of each text and each item's frames, where an objective tells it

    @cached_property
    def hidden(self) -> Tensor:
        """The states of the texts with hidden tokens and frames, or of the plain ones where nothing is hidden."""
        return self.encode(self.batch["input_ids"]) if self.frames is None else self.both[0]

    @cached_property
    def both(self) -> tuple[Tensor, Tensor]:
        """The states of `hidden`, and of the frames beside, (B, F, D)."""
        return self.beside(self.batch["input_ids"], self.mask, self.shown, self.batch["frame_mask"])

    @cached_property
    def plain(self) -> Tensor:
        """The states of the texts with all their tokens and frames."""
        return self.encode(self.plain_ids) if "labels" in self.batch or self.hides else self.hidden

    @cached_property
    def plain_ids(self) -> Tensor:
        """All tokens, (B, T)."""
        ids = self.batch["input_ids"]
        labels = self.batch.get("labels")
        return ids if labels is None else torch.where(labels == IGNORED, ids, labels)

    @cached_property
    def places(self) -> Tensor:
        """The hidden places, (B, T) bool."""
        return self.batch["labels"] != IGNORED

    @cached_property
    def embedded(self) -> Tensor:
        """The embeddings of the frames, (B, F, E)."""
        return self.frames(self.batch["frames"])

    @cached_property
    def hidden_frames(self) -> Tensor:
        """The places of hidden frames, (B, F) bool."""
        return self.hides.draw(self.batch["frame_mask"])

    @cached_property
    def shown(self) -> Tensor:
        """The embeddings of the frames, with another one in the places of hidden frames, (B, F, E)."""
        if self.hides is None:
            return self.embedded
        return self.frames(self.batch["frames"], self.hidden_frames, self.hides.embedding)

    def encode(self, ids: Tensor) -> Tensor:
        """A forward pass of its own, with new dropout masks."""
        if self.frames is None:
            return self.encoder(input_ids=ids, attention_mask=self.mask).last_hidden_state.float()
        return self.beside(ids, self.mask, self.embedded, self.batch["frame_mask"])[0]

    def beside(self, ids: Tensor, mask: Tensor, embedded: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """A forward pass of texts (N, T) and frames (N, F, E): states of the texts' places and of the frames'."""
        words = self.encoder.get_input_embeddings()(ids)  # (N, T, E)
        packed, seen = with_frames(words, mask, embedded, frame_mask)
        states = self.encoder(inputs_embeds=packed, attention_mask=seen).last_hidden_state.float()
        return apart(states, ids.shape[1], frame_mask)
