"""Encodings: the states of a batch's inputs, each computed once, so that objectives share a forward pass."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from fb3.data.masking import IGNORED
from fb3.models.frame_embeddings import FrameEmbeddings, apart, with_frames


class Encodings:
    """The states (B, T, D), in float32, of one batch in its several forms.

    With frames, [CLS] frames text [SEP] go through the encoder, and these are the states of the text's places.

    Args:
        encoder: a transformers encoder.
        batch: a batch of `PretrainingTexts`.
        frames: embeddings of the batch's frames; none: the encoder reads the texts alone.
    """

    def __init__(self, encoder: nn.Module, batch: Mapping[str, Tensor], frames: FrameEmbeddings | None = None) -> None:
        self.encoder, self.batch, self.frames = encoder, batch, frames
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

    @cached_property
    def embedded(self) -> Tensor:
        """The embeddings of the frames, (B, F, E)."""
        return self.frames(self.batch["frames"])

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
