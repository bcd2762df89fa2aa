"""Essays that change a little each time they are drawn for training, by a seeded generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fb3.data.augmentation.text_changes import SynonymsSettings, mistyped, read_synonyms, replaced, shuffled
from fb3.data.augmentation.token_changes import change, spliced
from fb3.data.tokens import Encoded, RowEncoder
from fb3.errors import Fb3Error
from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.data import DataSettings


@dataclass(frozen=True)
class Augmented(Encoded):
    """The essays of an `Encoded`, drawn with other changes every time; `rows` and `lengths` stay the plain ones.

    texts: what was tokenised. encoder: tokenises a changed text. mask: its id. settings: what is done, and how often.
    """

    texts: Sequence[str] = ()
    encoder: RowEncoder | None = None
    mask: int | None = None
    synonyms: SynonymsSettings | None = None
    settings: AugmentSettings | None = None
    rng: np.random.Generator | None = None

    def draw(self, rows: np.ndarray, targets: np.ndarray | None) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Changed tokens of some essays, and their targets (B, K) where given, mixed where the essays are."""
        inner = [self._changed(row) for row in rows]
        truths = None if targets is None else targets[rows]
        if truths is not None and self.settings.mix and len(rows) > 1:
            inner, truths = self._mixed(inner, truths)
        before, after = (np.array(part, np.int32) for part in (self.encoder.prefix, self.encoder.suffix))
        return [np.concatenate([before, part, after]) for part in inner], truths

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["generator"]

    def _changed(self, row: int) -> np.ndarray:
        """One essay's tokens without their frame."""
        tokens, settings = self.rows[row], self.settings
        if settings.shuffle or settings.typos or settings.synonyms:
            tokens = self.encoder.rows([self._changed_text(self.texts[row])])[0]
        end = len(tokens) - len(self.encoder.suffix)
        return change(tokens[len(self.encoder.prefix) : end], self.mask, settings, self.rng)

    def _changed_text(self, text: str) -> str:
        settings = self.settings
        if self.rng.random() < settings.shuffle:
            text = shuffled(text, self.rng)
        if settings.synonyms:
            text = replaced(text, self.synonyms, settings.synonyms.share, self.rng)
        return mistyped(text, settings.typos, self.rng) if settings.typos else text

    def _mixed(self, inner: list[np.ndarray], truths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Some essays go on as another of the batch from some point; their targets are mixed by the same share."""
        out, mixed = list(inner), truths.copy()
        for one in np.flatnonzero(self.rng.random(len(inner)) < self.settings.mix):
            other = (one + int(self.rng.integers(1, len(inner)))) % len(inner)
            share = float(self.rng.random())
            out[one] = spliced(inner[one], inner[other], share)
            mixed[one] = share * truths[one] + (1.0 - share) * truths[other]
        return out, mixed


def augmented(
    encoded: Encoded,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    data: DataSettings,
    settings: AugmentSettings,
    seed: int,
) -> Augmented:
    """The same essays, each drawn with other changes every time.

    Args:
        encoded: all essays' tokens.
        texts: what they were made of.
        tokenizer: knows the frame, which stays untouched, and the mask.
        data: how a text becomes tokens.
        settings: what is done, and how often.
        seed: the draws depend on it and on their order alone.

    Raises:
        Fb3Error: tokens shall be masked, and the tokenizer has no mask; a word list cannot be used.
    """
    mask = next((i for word in ("[MASK]", "<mask>") if (i := tokenizer.token_to_id(word)) is not None), None)
    if settings.mask and mask is None:
        raise Fb3Error("augment.mask: this tokenizer has neither [MASK] nor <mask>; use delete")
    return Augmented(
        rows=encoded.rows,
        pad=encoded.pad,
        lengths=encoded.lengths,
        slicer=encoded.slicer,
        statistics=encoded.statistics,
        padded=encoded.padded,
        texts=texts,
        encoder=RowEncoder(tokenizer, encoded.pad, data),
        mask=mask,
        synonyms=read_synonyms(settings.synonyms.file) if settings.synonyms else None,
        settings=settings,
        rng=np.random.default_rng([seed, 7]),  # apart from the generator of the batches' order
    )
