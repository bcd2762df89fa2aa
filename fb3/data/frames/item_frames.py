"""Frames of items as a batch needs them: some of each item's, padded, with a mask."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fb3.data.frames.frame_files import open_frames
from fb3.data.frames.frame_references import FrameReference
from fb3.errors import Fb3Error

_FITTED = 2000  # items whose frames say how frames are spread


@dataclass
class ItemFrames:
    """The frames of N items.

    references: (N,). most: frames of an item in a batch, at most. rng: draws some of too many in
    training.
    """

    references: np.ndarray
    most: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @cached_property
    def counts(self) -> np.ndarray:
        """Frames of each item in a batch, (N,)."""
        return np.array([min(self.most, each.count) for each in self.references], np.int64)

    @property
    def width(self) -> int:
        """Numbers of a frame; 0 where there are no items."""
        return open_frames(self.references[0].file).width if len(self.references) else 0

    @property
    def made_by(self) -> str:
        """A hash of the image encoder, empty where it is not told."""
        return next((made for each in self.references if (made := open_frames(each.file).made_by)), "")

    def batch(self, rows: np.ndarray, drawn: bool) -> dict[str, np.ndarray]:
        """frames (B, F, D) float32 and frame_mask (B, F), F the most frames of an item of the batch, one at least.

        Raises:
            Fb3Error: a number is not finite; names the file and the item.
        """
        found = [self._frames(self.references[row], drawn) for row in rows]
        longest = max(1, *map(len, found))
        frames = np.zeros((len(rows), longest, self.width), np.float32)
        mask = np.zeros((len(rows), longest), np.int64)
        for place, each in enumerate(found):
            frames[place, : len(each)], mask[place, : len(each)] = each, 1
        return {"frames": frames, "frame_mask": mask}

    def some(self, rows: np.ndarray, most: int = _FITTED) -> np.ndarray:
        """Frames of some of the items, side by side: (frames, D) float32.

        Of the items that have frames, `most` are taken at most, in even steps.
        """
        rows = rows[self.counts[rows] > 0]
        rows = rows[even_steps(len(rows), min(len(rows), most))]
        found = [self._frames(self.references[row], drawn=False) for row in rows]
        return np.concatenate([np.zeros((0, self.width), np.float32), *found])

    def means(self) -> np.ndarray:
        """The mean of each item's frames, (N, D) float16; NaN where an item has none."""
        out = np.full((len(self.references), self.width), np.nan, np.float16)
        for row, reference in enumerate(self.references):
            if reference.count:
                out[row] = self._frames(reference, drawn=False).mean(0)
        return out

    def _frames(self, reference: FrameReference, drawn: bool) -> np.ndarray:
        frames = reference.read()
        if (count := len(frames)) > self.most:
            some = np.sort(self.rng.choice(count, self.most, replace=False)) if drawn else even_steps(count, self.most)
            frames = frames[some]
        if not np.isfinite(frames).all():
            raise Fb3Error(
                f"{reference.file}: frames of {reference.identifier} hold NaN or infinity; compute them anew"
            )
        return frames.astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """The state on which the next draw depends."""
        return {"frames": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.rng.bit_generator.state = state["frames"]


def even_steps(count: int, most: int) -> np.ndarray:
    """`most` of `count` places in even steps, each the middle of its stretch, (most,)."""
    return ((np.arange(most) + 0.5) * count / most).astype(np.int64)
