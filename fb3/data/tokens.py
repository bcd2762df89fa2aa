"""Tokens: each text tokenised once and ragged, truncated, cut into windows where the recipe says so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from fb3.data.text_statistics import text_statistics
from fb3.data.texts import input_texts
from fb3.data.tokenizer import check_tokenizer, frame, load_tokenizer, padded_to
from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings
from fb3.system.file_names import SECOND


@dataclass(frozen=True)
class Slicer:
    """Cuts an essay's tokens into windows that the encoder can take, each with the frame around it.

    length: of the longest window. stride: between two starts, none: parts of equal length. prefix, suffix: tokens of
    the frame.
    """

    length: int
    stride: int | None
    prefix: int
    suffix: int

    def windows(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Windows that cover all tokens; a text that fits into one stays as it is."""
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


@dataclass(frozen=True)
class Encoded:
    """Essays as tokens: ragged rows of ids, the frame included; row i is essay i.

    lengths: (N,), tokens of each, those of all its windows. slicer: cuts the rows; none: an essay is one input.
    second: the same essays as a second encoder's tokens. statistics: (N, S), of the texts; none: not wanted. padded:
    the tokens to which each input is padded, and which `lengths` counts; 0: the longest of a batch.
    """

    rows: Sequence[np.ndarray]
    pad: int
    lengths: np.ndarray
    slicer: Slicer | None = None
    second: "Encoded | None" = None
    statistics: np.ndarray | None = None
    padded: int = 0

    @property
    def costs(self) -> np.ndarray:
        """(N,), tokens of each essay over all encoders: what batches are made by."""
        return self.lengths + (self.second.costs if self.second else 0)

    def draw(self, rows: np.ndarray, targets: np.ndarray | None) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The tokens of some essays, and their targets (B, K) where given."""
        return [self.rows[row] for row in rows], None if targets is None else targets[rows]

    def state_dict(self) -> dict[str, Any]:
        """What a draw depends on beside the rows; of plain essays nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


def tokenise(texts: Sequence[str], tokenizer: Tokenizer, pad: int, data: DataSettings, padded: int = 0) -> Encoded:
    """Tokenises every text once and truncates it.

    Args:
        texts: N texts; an empty one keeps its frame.
        tokenizer: the fast tokenizer of the encoder folder.
        pad: the id that fills a batch.
        data: max_length, truncation, windows and prompt.
        padded: as in `Encoded`.

    Raises:
        Fb3Error: no room for text.
    """
    encoder = RowEncoder(tokenizer, pad, data)
    rows = []
    for start in range(0, len(texts), 1024):  # bounds the memory of the tokenizer's own, much larger, encodings
        rows += encoder.rows(list(texts[start : start + 1024]))
    slicer = encoder.slicer
    costs = (sum(padded or len(part) for part in (slicer.windows(row) if slicer else [row])) for row in rows)
    return Encoded(rows, pad, np.fromiter(costs, np.int64, len(rows)), slicer, padded=padded)


class RowEncoder:
    """Texts to rows of tokens: prompt and special tokens around what truncation leaves.

    Raises:
        Fb3Error: no room for text.
    """

    def __init__(self, tokenizer: Tokenizer, pad: int, data: DataSettings) -> None:
        self.tokenizer, self.pad, self.truncation = tokenizer, pad, data.truncation
        self.prefix, self.suffix = frame(tokenizer, data)
        around = len(self.prefix) + len(self.suffix)
        self.room = data.max_length - around
        if data.encoder_length() <= around:
            raise Fb3Error(f"data: no room in {data.encoder_length()} tokens beside {around} of prompt and frame")
        self.slicer = None
        if data.windows:
            room = data.windows.length - around
            if (data.windows.stride or 0) > room:
                raise Fb3Error(f"data.windows.stride={data.windows.stride} passes over text; at most {room}")
            self.slicer = Slicer(data.windows.length, data.windows.stride, len(self.prefix), len(self.suffix))

    def rows(self, texts: list[str]) -> list[np.ndarray]:
        """One row of ids a text."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._framed(encoding.ids) for encoding in encodings]

    def _framed(self, ids: list[int]) -> np.ndarray:
        framed = [*self.prefix, *truncate(ids, self.room, self.truncation), *self.suffix]
        return np.array(framed or [self.pad], np.int32)  # an encoder needs one token at least


def truncate(ids: list[int], room: int, how: str) -> list[int]:
    """Keeps `room` tokens: the first, the last, or half of each end (the head takes the odd one)."""
    if len(ids) <= room:
        return ids
    if how == "head":
        return ids[:room]
    if how == "tail":
        return ids[-room:]
    tail = room // 2
    return ids[: room - tail] + (ids[-tail:] if tail else [])


def encode_essays(essays: pd.DataFrame, folder: str | Path, data: DataSettings) -> Encoded:
    """What a scorer reads of N essays: tokens, and the texts' statistics where the recipe wants them.

    Args:
        essays: as `read_essays` returns them.
        folder: the encoder folder.
        data: what happens to a text.

    Raises:
        Fb3Error: as in `encode_texts`.
    """
    encoded = encode_texts(input_texts(essays, data), folder, data)
    if not data.text.statistics:
        return encoded
    return replace(encoded, statistics=text_statistics(essays[data.text_column].tolist()))


def encode_texts(texts: Sequence[str], folder: str | Path, data: DataSettings) -> Encoded:
    """N texts as tokens of an encoder folder, and as those of its second encoder where it has one.

    Raises:
        Fb3Error: a file is missing or broken; the recipe asks of a tokenizer what it cannot do.
    """
    tokenizer, pad = load_tokenizer(folder)
    check_tokenizer(tokenizer, data)
    encoded = tokenise(texts, tokenizer, pad, data, padded_to(folder))
    if not (Path(folder) / SECOND).is_dir():
        return encoded
    return replace(encoded, second=encode_texts(texts, Path(folder) / SECOND, data))
