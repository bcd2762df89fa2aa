"""Essays that change a little each time training draws them, by a seeded generator: on-the-fly augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fb3.data.augmentation.text_changes import Synonyms, mistyped, read_synonyms, replaced, shuffled
from fb3.data.augmentation.token_changes import change, spliced
from fb3.data.masking import mask_token
from fb3.data.tokens import Encoded, RowEncoder
from fb3.errors import Fb3Error
from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.data import DataSettings


@dataclass(frozen=True, kw_only=True)
class AugmentedEssays(Encoded):
    """Essays drawn with other changes each time; `rows` and `lengths` describe the plain essays.

    texts: the plain texts. encoder: tokenises a changed text. mask_id: the mask's id; none: the tokenizer has none.
    settings: the changes and their probabilities.
    """

    texts: Sequence[str]
    encoder: RowEncoder
    mask_id: int | None
    synonyms: Synonyms | None
    settings: AugmentSettings
    rng: np.random.Generator

    def draw(self, rows: np.ndarray, targets: np.ndarray | None) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Changed tokens of some essays, and their targets (B, K) where given; mixed essays have mixed targets."""
        inner = [self._changed(row) for row in rows]
        truths = None if targets is None else targets[rows]
        if truths is not None and self.settings.mix and len(rows) > 1:
            inner, truths = self._mixed(inner, truths)
        prefix, suffix = (np.array(ids, np.int32) for ids in (self.encoder.prefix, self.encoder.suffix))
        return [np.concatenate([prefix, tokens, suffix]) for tokens in inner], truths

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rng.bit_generator.state = state["generator"]

    def _changed(self, row: int) -> np.ndarray:
        """One essay's tokens, changed, without prefix and suffix."""
        tokens, settings = self.rows[row], self.settings
        if settings.shuffle or settings.typos or settings.synonyms:
            tokens = self.encoder.rows([self._changed_text(self.texts[row])])[0]
        end = len(tokens) - len(self.encoder.suffix)
        return change(tokens[len(self.encoder.prefix) : end], self.mask_id, settings, self.rng)

    def _changed_text(self, text: str) -> str:
        settings = self.settings
        if self.rng.random() < settings.shuffle:
            text = shuffled(text, self.rng)
        if settings.synonyms:
            text = replaced(text, self.synonyms, settings.synonyms.share, self.rng)
        return mistyped(text, settings.typos, self.rng) if settings.typos else text

    def _mixed(self, inner: list[np.ndarray], truths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Lets some essays go on as another of the batch from some point; mixes their targets by the same share."""
        out, mixed = list(inner), truths.copy()
        for one in np.flatnonzero(self.rng.random(len(inner)) < self.settings.mix):
            other = (one + int(self.rng.integers(1, len(inner)))) % len(inner)
            share = float(self.rng.random())
            out[one] = spliced(inner[one], inner[other], share)
            mixed[one] = share * truths[one] + (1.0 - share) * truths[other]
        return out, mixed


def augment_essays(
    encoded: Encoded,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    data: DataSettings,
    settings: AugmentSettings,
    seed: int,
) -> AugmentedEssays:
    """Makes essays that are drawn with other changes every time.

    Args:
        encoded: all essays' tokens.
        texts: the texts that became these tokens.
        tokenizer: knows the mask, and the special tokens, which no change touches.
        data: says how a text becomes tokens.
        settings: the changes and their probabilities.
        seed: it and the order of the draws alone decide the changes.

    Raises:
        Fb3Error: augment.mask is set and the tokenizer has no mask; a word list cannot be used.
    """
    mask_id = mask_token(tokenizer)
    if settings.mask and mask_id is None:
        raise Fb3Error("augment.mask: this tokenizer has neither [MASK] nor <mask>; use delete")
    return AugmentedEssays(
        **vars(encoded),
        texts=texts,
        encoder=RowEncoder(tokenizer, encoded.pad_id, data),
        mask_id=mask_id,
        synonyms=read_synonyms(settings.synonyms.file) if settings.synonyms else None,
        settings=settings,
        rng=np.random.default_rng([seed, 7]),  # 7 keeps the changes apart from the order of the batches
    )
