"""Texts as pretraining reads them: all their tokens, cut into windows, with places hidden anew at each draw."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fb3.data.frames.item_frames import ItemFrames
from fb3.data.masking import IGNORED, Vocabulary, mask_tokens, read_vocabulary, special_ids, words_of
from fb3.data.segments import SegmentPairs, sentence_ends
from fb3.data.texts import NEWLINE, Text
from fb3.data.tokenizer import prefix_and_suffix, separator
from fb3.data.tokens import Encoded
from fb3.data.windows import WindowSplitter
from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings
from fb3.recipe.pretraining import MaskingSettings, PretrainingSettings

_FRAMES = 19  # keeps the draws of frames apart from those of hidden tokens
_AT_ONCE = 256  # texts: encodings that know their words are many times as large in memory as the ids


@dataclass(frozen=True, kw_only=True)
class PretrainingTexts(Encoded):
    """N windows of texts; `rows` holds their plain tokens, prefix and suffix included.

    words: the number of each token's word, in the form of `rows`; -1 where a token is never hidden. texts: (N,), the
    number of each window's text. groups: (N,), equal for windows whose likeness is no wonder: parts of one text, or
    texts on one prompt. masking, vocabulary: for hidden tokens; none: nothing is hidden. pairs: makes segments; none:
    a window stays one text. frames: each window's, all of its item's. empty: the tokens of an empty text, where an
    objective reads frames without their text; else none.
    """

    words: Sequence[np.ndarray]
    texts: np.ndarray
    groups: np.ndarray
    masking: MaskingSettings | None
    vocabulary: Vocabulary | None
    pairs: SegmentPairs | None
    empty: np.ndarray | None
    rng: np.random.Generator

    def draw(self, rows: np.ndarray, targets: Any = None) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The tokens that the encoder reads of some windows, and further arrays of the batch by name.

        Returns:
            The tokens, some of them hidden. `group` (B,); `labels` (B, T), the token at a hidden place and IGNORED
            elsewhere, where tokens are hidden; `order` (B,), 1 for a right pair of segments, 0 for a wrong one and
            IGNORED for a text too short to be cut, where there are pairs; `empty` (B, E), the same in each row.
        """
        inputs, labels, order = [], [], []
        for row in rows:
            ids, words = self.rows[row], self.words[row]
            if self.pairs:
                ids, words, right = self._pair(row)
                order.append(right)
            if self.masking:
                ids, hidden = mask_tokens(ids, words, self.masking, self.vocabulary, self.rng)
                labels.append(hidden)
            inputs.append(ids)
        more = {"group": self.groups[rows]}
        if self.empty is not None:
            more["empty"] = np.tile(self.empty, (len(rows), 1))
        if self.masking:
            more["labels"] = _padded_labels(labels, self.pad_to)
        return inputs, more | ({"order": np.array(order, np.int64)} if self.pairs else {})

    def _pair(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
        other = int(self.rng.integers(len(self.rows)))
        other = None if self.texts[other] == self.texts[row] else other
        rows = [(self.rows[each], self.words[each]) for each in ([row] if other is None else [row, other])]
        return self.pairs.draw(*rows, rng=self.rng)

    def seeded(self, *seed: int) -> "PretrainingTexts":
        """The same windows, with draws that depend on the seed alone."""
        frames = self.frames and replace(self.frames, rng=np.random.default_rng([*seed, _FRAMES]))
        return replace(self, rng=np.random.default_rng(seed), frames=frames)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.rng.bit_generator.state, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["generator"]
        super().load_state_dict(state)


def cut_texts(
    texts: Sequence[Text],
    groups: np.ndarray,
    tokenizer: Tokenizer,
    pad_id: int,
    data: DataSettings,
    settings: PretrainingSettings,
    seed: int,
    pad_to: int = 0,
    frames: ItemFrames | None = None,
) -> PretrainingTexts:
    """Tokenises texts and cuts them into windows; a text without tokens has none.

    Args:
        texts: M texts, as `input_texts` returns them.
        groups: (M,) whole numbers, equal for texts on one prompt.
        tokenizer, pad_id, pad_to: the encoder folder's.
        data: the prompt before each window, and the length where `settings` has none.
        settings: masking, length and objectives.
        seed: it and the order of the draws alone decide what is hidden.
        frames: the M texts' items' frames; none: there are none.

    Raises:
        Fb3Error: no room for text, no mask, no separator, or no tokens in any text.
    """
    prefix, suffix = prefix_and_suffix(tokenizer, data)
    order, between = settings.objective("order"), separator(tokenizer) if data.text.parts else []
    apart = _separator_or_end(tokenizer, suffix) if order else []
    length = (settings.length or data.encoder_length()) - len(apart)
    if length <= len(prefix) + len(suffix) + 1:
        raise Fb3Error(f"pretrain.length={length}: no room for text beside {len(prefix) + len(suffix)} other tokens")
    splitter = WindowSplitter(length, None, len(prefix), len(suffix))
    rows, words, owners = [], [], []
    for number, (ids, numbers) in enumerate(_tokenised(texts, tokenizer, between)):
        if not len(ids):
            continue
        row = np.concatenate([prefix, ids, suffix]).astype(np.int32)
        outside = np.full(len(prefix), -1), np.full(len(suffix), -1)
        rows += splitter.split(row)
        words += splitter.split(np.concatenate([outside[0], numbers, outside[1]]).astype(np.int32))
        owners += [number] * (len(rows) - len(owners))
    if not rows:
        raise Fb3Error("no text to pretrain on: all are empty")
    owners = np.array(owners)
    pairs = None
    if order:
        ends = sentence_ends(tokenizer, (NEWLINE,))
        pairs = SegmentPairs(order.form, len(prefix), len(suffix), np.array(apart, np.int32), ends, length)
    made = PretrainingTexts(
        rows=rows,
        pad_id=pad_id,
        lengths=np.array([pad_to or len(row) for row in rows]),
        pad_to=pad_to,
        words=words,
        texts=owners,
        groups=np.asarray(groups)[owners],
        masking=settings.masking if settings.masks() else None,
        vocabulary=read_vocabulary(tokenizer) if settings.masks() else None,
        pairs=pairs,
        empty=np.array([*prefix, *suffix] or [pad_id], np.int64) if settings.objective("itc") else None,
        frames=frames and replace(frames, references=frames.references[owners]),
        rng=np.random.default_rng(),
    )
    return made.seeded(seed, 13)  # 13 keeps the draws apart from the order of the batches


def _separator_or_end(tokenizer: Tokenizer, suffix: list[int]) -> list[int]:
    """The tokenizer's separator of two texts; the tokens after a text where it has none."""
    try:
        return separator(tokenizer)
    except Fb3Error:
        return suffix


def _tokenised(
    texts: Sequence[Text], tokenizer: Tokenizer, between: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens of each text and the numbers of their words; several texts of one essay stand one after the other."""
    special = special_ids(tokenizer)
    for start in range(0, len(texts), _AT_ONCE):
        several = [(text,) if isinstance(text, str) else text for text in texts[start : start + _AT_ONCE]]
        flat = [part for parts in several for part in parts]
        encodings = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
        for parts in several:
            ids, words = [], []
            for place, encoding in enumerate([next(encodings) for _ in parts]):
                if place:
                    ids += [*between]
                    words += [-1] * len(between)
                own, first = words_of(encoding, special), max(words, default=-1) + 1
                ids += encoding.ids
                words += np.where(own < 0, -1, own + first).tolist()
            yield np.array(ids, np.int32), np.array(words, np.int32)


def _padded_labels(labels: Sequence[np.ndarray], pad_to: int) -> np.ndarray:
    """Labels (B, T), IGNORED beyond a window's end."""
    out = np.full((len(labels), max(pad_to, *map(len, labels))), IGNORED, np.int64)
    for row, own in zip(out, labels, strict=True):
        row[: len(own)] = own
    return out
