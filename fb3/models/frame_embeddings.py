"""Frames as an encoder's input: embeddings of their own, alone or packed between the tokens of a text."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fb3.data.frames.item_frames import ItemFrames
from fb3.errors import Fb3Error

_CONSTANT = 1e-6  # standard deviation below which a number of the frames says nothing
_MOST = 10.0  # standard deviations: bounds a frame that is broken


class FrameEmbeddings(nn.Module):
    """A linear layer on frames, standardised by the training's, plus a learned vector for each place.

    Args:
        width: numbers of a frame.
        hidden: numbers of an embedding.
        most: frames of an item, at most.
    """

    def __init__(self, width: int, hidden: int, most: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))  # the training frames'; saved with the weights
        self.register_buffer("factor", torch.ones(width))
        self.linear = nn.Linear(width, hidden)
        self.places = nn.Embedding(most, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.pretrained = False
        nn.init.normal_(self.places.weight, std=0.02)

    def vectors(self, frames: Tensor, seen: Tensor) -> Tensor:
        """Vectors (B, F, width) of frames as a batch brings them, with their mask (B, F)."""
        return frames

    def fit_items(self, items: ItemFrames, rows: np.ndarray) -> None:
        """Learns mean and standard deviation from the frames of some training items, see `fit`."""
        self.fit(items.some(rows))

    def fit(self, frames: np.ndarray) -> None:
        """Learns mean and standard deviation of each number from training frames (N, width), once, before training.

        Pretrained embeddings keep the ones that they learned with: a number has to mean the same to them. Without
        frames there is nothing to learn.
        """
        if self.pretrained or not len(frames):
            return
        deviation = frames.std(0, dtype=np.float64)
        factor = np.where(deviation > _CONSTANT, 1 / np.maximum(deviation, _CONSTANT), 0.0)
        self.mean.copy_(torch.from_numpy(frames.mean(0, dtype=np.float64)))
        self.factor.copy_(torch.from_numpy(factor))

    @torch.no_grad()
    def start_from(self, file: Path) -> None:
        """Starts at the embeddings and the standardisation of a pretraining; places beyond its own stay new.

        Raises:
            Fb3Error: the file holds embeddings of other sizes.
        """
        stored = load_file(file)
        own = [*self.named_parameters(), *self.named_buffers()]
        for name, tensor in [each for each in own if not each[0].startswith("images.")]:
            found = stored.get(name, torch.empty(0))
            if found.shape != tensor.shape and not (name == "places.weight" and found.shape[1:] == tensor.shape[1:]):
                raise Fb3Error(
                    f"{file}: {name} is {list(found.shape)}, want {list(tensor.shape)}; copy the folder anew"
                )
            tensor[: len(found)] = found[: len(tensor)]
        self.pretrained = True

    def start_like(self, words: Tensor) -> None:
        """Gives the embeddings the standard deviation of an encoder's word embeddings (V, D), to which it is used."""
        with torch.no_grad():
            self.norm.weight.fill_(float(words.float().std()))

    def standardised(self, frames: Tensor) -> Tensor:
        """Frames (B, F, width) by the mean and the deviation of the training's."""
        return ((frames - self.mean) * self.factor).clamp(-_MOST, _MOST)

    def forward(self, frames: Tensor, hidden: Tensor | None = None, instead: Tensor | None = None) -> Tensor:
        """(B, F, width) to (B, F, D), with `instead` (D,) at the `hidden` places (B, F)."""
        embedded = self.linear(self.standardised(frames))
        if hidden is not None:
            embedded = torch.where(hidden[..., None], instead, embedded)
        return self.norm(embedded + self.places.weight[: frames.shape[1]])


def with_frames(words: Tensor, mask: Tensor, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Packs an item's frames behind the first token of its text, without padding between them.

    So a state does not depend on the other items of the batch, whichever way the encoder knows positions.

    Args:
        words: (B, T, D), padded on the right by mask (B, T).
        frames: (B, F, D), padded on the right by frame_mask (B, F).

    Returns:
        Embeddings (B, T + F, D) and their mask (B, T + F).
    """
    tokens, count = words.shape[1], frames.shape[1]
    own, text = frame_mask.sum(1, keepdim=True), mask.sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(tokens + count, device=words.device)[None]  # (1, T + F)
    from_text = torch.where(place == 0, place, place - own).clamp(0, tokens - 1)
    from_frames = tokens + (place - 1).clamp(0, count - 1)
    source = torch.where((place >= 1) & (place <= own), from_frames, from_text)  # (B, T + F)
    both = torch.cat([words, frames.to(words.dtype)], 1)
    packed = both.gather(1, source[..., None].expand(-1, -1, both.shape[-1]))
    return packed, (place < own + text).to(mask.dtype)


def apart(states: Tensor, tokens: int, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Takes apart the states (B, T + F, D) of inputs that `with_frames` packed.

    Returns:
        States of the text's places (B, T, D) and of the frames' (B, F, D), both padded as they were before.
    """
    own, last = frame_mask.sum(1, keepdim=True), states.shape[1] - 1  # (B, 1)
    text = torch.arange(tokens, device=states.device)[None]  # (1, T)
    text = torch.where(text == 0, text, (text + own).clamp(max=last))  # (B, T)
    frames = torch.arange(1, frame_mask.shape[1] + 1, device=states.device).expand(len(states), -1)  # (B, F)
    both = torch.cat([text, frames], 1)[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, both).split([tokens, frame_mask.shape[1]], 1)
