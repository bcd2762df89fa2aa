"""Frames as an encoder's input: embeddings of their own, alone or packed between the tokens of a text."""

import torch
from torch import Tensor, nn


class FrameEmbeddings(nn.Module):
    """A linear layer on standardised frames, plus a learned vector for each place, on the scale of word embeddings.

    Args:
        width: numbers of a frame.
        hidden: width of the encoder.
        most: frames of an item, at most.
    """

    def __init__(self, width: int, hidden: int, most: int) -> None:
        super().__init__()
        self.standard = nn.LayerNorm(width)
        self.linear = nn.Linear(width, hidden)
        self.places = nn.Embedding(most, hidden)
        self.norm = nn.LayerNorm(hidden)
        nn.init.normal_(self.places.weight, std=0.02)

    def start_like(self, words: Tensor) -> None:
        """Gives the embeddings the standard deviation of an encoder's word embeddings (V, D), to which it is used."""
        with torch.no_grad():
            self.norm.weight.fill_(float(words.float().std()))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, width) to (B, F, D)."""
        placed = self.linear(self.standard(frames)) + self.places.weight[: frames.shape[1]]
        return self.norm(placed)


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
