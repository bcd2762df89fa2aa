"""Sliding windows: an essay that is longer than the encoder's input, cut into several inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WindowSplitter:
    """Cuts an essay's tokens into windows, each with the prefix and the suffix of the whole around it.

    length: tokens of the longest window. stride: tokens between two starts; none: the fewest windows, of nearly equal
    length, without overlap. prefix, suffix: how many tokens each of the two has.
    """

    length: int
    stride: int | None
    prefix: int
    suffix: int

    def split(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Windows that cover all tokens; an essay that fits into one stays as it is."""
        if len(tokens) <= self.length:
            return [tokens]
        end = len(tokens) - self.suffix
        before, inner, after = tokens[: self.prefix], tokens[self.prefix : end], tokens[end:]
        room = self.length - self.prefix - self.suffix
        if self.stride is None:
            parts = np.array_split(inner, -(-len(inner) // room))
        else:
            starts = [*range(0, len(inner) - room, self.stride), len(inner) - room]
            parts = [inner[start : start + room] for start in starts]
        return [np.concatenate([before, part, after]) for part in parts]


def window_places(counts: Sequence[int]) -> dict[str, np.ndarray]:
    """`windows`, places among a batch's inputs, and `window_mask`, (B, V) each, from each essay's count of windows."""
    places = np.zeros((len(counts), max(counts)), np.int64)
    mask = np.zeros_like(places)
    first = 0
    for essay, count in enumerate(counts):
        places[essay, :count] = np.arange(first, first + count)
        mask[essay, :count] = 1
        first += count
    return {"windows": places, "window_mask": mask}
