"""Tokens: each text tokenised once, truncated, between special tokens and prompt. Without torch, beside its import."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from fb3.data.frames.item_frames import ItemFrames
from fb3.data.text_statistics import text_statistics
from fb3.data.texts import Text, input_texts
from fb3.data.tokenizer import check_tokenizer, load_tokenizer, padded_length, prefix_and_suffix, separator
from fb3.data.truncation import end_paragraphs, share_room, truncate
from fb3.data.windows import WindowSplitter
from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.system.file_names import CONFIG, FRAME_ENCODER, FRAME_WIDTH, SECOND
from fb3.system.files import read_json

_AT_ONCE = 1024  # texts: the tokenizer's own encodings are many times as large in memory as the ids


@dataclass(frozen=True)
class Encoded:
    """N essays as tokens. `rows[i]` holds the ids of essay i, prefix and suffix included; rows differ in length.

    pad_id: fills the shorter inputs of a batch. lengths: (N,), tokens of each essay in all its windows, padding up to
    `pad_to` included. splitter: cuts a row into windows; none: an essay is one input. second: the essays in the tokens
    of a second encoder. statistics: (N, S), of the texts; none: not wanted. pad_to: tokens to which every input is
    padded; 0: to the longest of its batch. frames: beside the texts; none: there are none.
    """

    rows: Sequence[np.ndarray]
    pad_id: int
    lengths: np.ndarray
    splitter: WindowSplitter | None = None
    second: "Encoded | None" = None
    statistics: np.ndarray | None = None
    pad_to: int = 0
    frames: ItemFrames | None = None

    @property
    def total_lengths(self) -> np.ndarray:
        """Tokens of each essay over all encoders, and frames, (N,): batches are made by them."""
        further = self.frames.counts if self.frames else 0
        return self.lengths + further + (self.second.total_lengths if self.second else 0)

    def draw(self, rows: np.ndarray, targets: np.ndarray | None) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The tokens of some essays, and their targets (B, K) where `targets` (N, K) are given."""
        return [self.rows[row] for row in rows], None if targets is None else targets[rows]

    def state_dict(self) -> dict[str, Any]:
        """The state on which the next draw depends; plain texts have none."""
        return self.frames.state_dict() if self.frames else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        if self.frames:
            self.frames.load_state_dict(state)


def encode_essays(essays: pd.DataFrame, folder: str | Path, data: DataSettings) -> Encoded:
    """Encodes N essays: their tokens, and the texts' statistics and frames where the recipe wants them.

    Args:
        essays: the table of `read_essays`.
        folder: the encoder folder.
        data: says how a text becomes tokens.

    Raises:
        Fb3Error: see `encode_texts`.
    """
    encoded = encode_texts(input_texts(essays, data), folder, data)
    if frames := item_frames(essays, data):
        config = read_json(Path(folder) / CONFIG)
        check_frames(frames, config.get(FRAME_WIDTH), config.get(FRAME_ENCODER, ""), folder)
        encoded = replace(encoded, frames=frames)
    if not data.text.statistics:
        return encoded
    return replace(encoded, statistics=text_statistics(essays[data.text_column].tolist()))


def check_frames(frames: ItemFrames, width: int | None, made_by: str, place: object) -> None:
    """Refuses frames of another width, or of another image encoder, than the ones that `place` was trained on."""
    if not len(frames.references):
        return
    file = frames.references[0].file
    if frames.width != width:
        raise Fb3Error(
            f"{file}: frames of {frames.width} numbers, and {place} knows {width}; take the files of its training"
        )
    if made_by and frames.made_by not in ("", made_by):
        raise Fb3Error(f"{file}: frames of another image encoder than {place} knows; make them by its own")


def item_frames(essays: pd.DataFrame, data: DataSettings) -> ItemFrames | None:
    """The frames of the items of `read_essays`; None where the recipe has none."""
    return ItemFrames(essays[FRAMES_COLUMN].to_numpy(), data.frames.most) if data.frames else None


def encode_texts(texts: Sequence[Text], folder: str | Path, data: DataSettings) -> Encoded:
    """Encodes N texts in the tokens of an encoder folder, and of its second encoder where it has one.

    Raises:
        Fb3Error: a file is missing or broken; a setting does nothing with this tokenizer; no room for text.
    """
    tokenizer, pad_id = load_tokenizer(folder)
    check_tokenizer(tokenizer, data)
    encoded = tokenise(texts, tokenizer, pad_id, data, padded_length(folder))
    if not (Path(folder) / SECOND).is_dir():
        return encoded
    return replace(encoded, second=encode_texts(texts, Path(folder) / SECOND, data))


def tokenise(texts: Sequence[Text], tokenizer: Tokenizer, pad_id: int, data: DataSettings, pad_to: int = 0) -> Encoded:
    """Tokenises every text once and truncates it.

    Args:
        texts: N texts; an empty one keeps its prefix and suffix.
        tokenizer: the fast tokenizer of the encoder folder.
        pad_id, pad_to: see `Encoded`.
        data: max_length, truncation, windows and prompt.

    Raises:
        Fb3Error: no room for text.
    """
    encoder = RowEncoder(tokenizer, pad_id, data)
    splitter, rows = encoder.splitter, []
    for start in range(0, len(texts), _AT_ONCE):
        rows += encoder.rows(list(texts[start : start + _AT_ONCE]))
    inputs = (splitter.split(row) if splitter else [row] for row in rows)
    lengths = (sum(pad_to or len(tokens) for tokens in windows) for windows in inputs)
    return Encoded(rows, pad_id, np.fromiter(lengths, np.int64, len(rows)), splitter, pad_to=pad_to)


class RowEncoder:
    """Turns a text into a row: prefix, the text as far as it fits, suffix. An Fb3Error where no text would fit.

    Of several texts each has its share of the room, and the tokenizer's own separator stands between them.
    """

    def __init__(self, tokenizer: Tokenizer, pad_id: int, data: DataSettings) -> None:
        self.tokenizer, self.pad_id = tokenizer, pad_id
        self.prefix, self.suffix = prefix_and_suffix(tokenizer, data)
        self.shares = [part.share for part in data.text.parts or ()]
        self.truncations = [part.truncation or data.truncation for part in data.text.parts or ()] or [data.truncation]
        self.between = separator(tokenizer) if self.shares else []
        gaps = max(0, len(self.shares) - 1)
        around, longest = len(self.prefix) + len(self.suffix) + gaps * len(self.between), data.encoder_length()
        self.room = data.max_length - around
        if longest <= around + gaps:
            raise Fb3Error(f"data: no room in {longest} tokens beside {around} of prompt and special tokens")
        self.splitter = None
        if windows := data.windows:
            if (windows.stride or 0) > windows.length - around:
                at_most = windows.length - around
                raise Fb3Error(f"data.windows.stride={windows.stride} passes over text; at most {at_most}")
            self.splitter = WindowSplitter(windows.length, windows.stride, len(self.prefix), len(self.suffix))

    def rows(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """One row of ids for each text, or for each tuple of texts."""
        if not self.shares:
            how = self.truncations[0]
            return [self._row([self._cut(text, ids, self.room, how)]) for text, ids in self._encoded(texts)]
        columns = [list(self._encoded(column)) for column in zip(*texts, strict=True)]
        return [self._row(self._sharing(several)) for several in zip(*columns, strict=True)]

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return ((text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True))

    def _sharing(self, several: Sequence[tuple[str, list[int]]]) -> list[list[int]]:
        """The tokens that stay of several texts of one essay."""
        rooms = share_room([len(ids) for _, ids in several], self.shares, self.room)
        cuts = zip(several, rooms, self.truncations, strict=True)
        return [self._cut(text, ids, room, how) for (text, ids), room, how in cuts]

    def _cut(self, text: str, ids: list[int], room: int, how: str) -> list[int]:
        by_paragraphs = how == "paragraphs" and len(ids) > room
        ends = end_paragraphs(text, self.tokenizer) if by_paragraphs else None
        return truncate(ids, room, how, ends)

    def _row(self, several: list[list[int]]) -> np.ndarray:
        row = [*self.prefix, *several[0]]
        for ids in several[1:]:
            row += [*self.between, *ids]
        return np.array(row + self.suffix or [self.pad_id], np.int32)  # an encoder needs one token at least
