"""Pairs of segments: a window cut between two sentences, in its order or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from fb3.data.masking import IGNORED

_MARKS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")
Window = tuple[np.ndarray, np.ndarray]  # tokens, and the numbers of their words


def sentence_ends(tokenizer: Tokenizer, further: Sequence[str] = ()) -> np.ndarray:
    """The ids of tokens that end a sentence, by their last character, and of `further` tokens where there are any."""
    found = {number for token, number in tokenizer.get_vocab().items() if token.endswith(_MARKS)}
    return np.array(sorted(found | {i for token in further if (i := tokenizer.token_to_id(token)) is not None}))


@dataclass(frozen=True)
class SegmentPairs:
    """Cuts windows into two segments with the tokenizer's separator between them.

    form: see `OrderSettings`. prefix, suffix: how many tokens stand around a window's text. between: the separator.
    ends: ids of tokens that end a sentence. length: tokens of the longest window, without the separator.
    """

    form: Literal["swapped", "next"]
    prefix: int
    suffix: int
    between: np.ndarray
    ends: np.ndarray
    length: int

    def draw(self, window: Window, other: Window | None = None, *, rng: np.random.Generator) -> tuple:
        """A pair made of a window, and in half of the draws a wrong one.

        Args:
            window: the window.
            other: a window of another text, for the form next; none: the pair is right.
            rng: draws the place of the cut, and whether the pair is right.

        Returns:
            The tokens, the numbers of their words, and 1 for a right pair, 0 for a wrong one, IGNORED where the window
            has no two words; this stays as it is.
        """
        right = bool(rng.integers(2))
        if (cut := self._cut(window, rng)) is None:
            return *window, IGNORED
        first, second = ([array[part] for array in window] for part in self._segments(window[0], cut))
        if not right and self.form == "swapped":
            first, second = second, first
        elif not right and other is not None and (place := self._cut(other, rng)) is not None:
            room = self.length - self.prefix - self.suffix - len(first[0])
            second = [array[self._segments(other[0], place)[1]][:room] for array in other]
        elif not right:
            right = True
        after = len(window[0]) - self.suffix
        apart = self.between, np.full(len(self.between), -1, window[1].dtype)
        ids, words = (
            np.concatenate([whole[: self.prefix], one, gap, two, whole[after:]])
            for whole, one, gap, two in zip(window, first, apart, _renumbered(first, second), strict=True)
        )
        return ids, words, int(right)

    def _segments(self, ids: np.ndarray, cut: int) -> tuple[slice, slice]:
        return slice(self.prefix, cut), slice(cut, len(ids) - self.suffix)

    def _cut(self, window: Window, rng: np.random.Generator) -> int | None:
        """The place where a second segment begins: after a sentence, else before a word; none in a single word."""
        ids, words = window
        inner = np.arange(self.prefix + 1, len(ids) - self.suffix)
        after = inner[np.isin(ids[inner - 1], self.ends)]
        places = after if len(after) else inner[words[inner] != words[inner - 1]]
        return int(places[rng.integers(len(places))]) if len(places) else None


def _renumbered(first: list[np.ndarray], second: list[np.ndarray]) -> Window:
    """The second segment, its words numbered apart from the first's, which may be of another text."""
    ids, words = second
    top = max(first[1].max(initial=-1) + 1, 0)
    return ids, np.where(words < 0, -1, words + top).astype(words.dtype)
