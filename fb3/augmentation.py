"""Augmentation: an essay's tokens changed a little each time they are drawn for training, by a seeded generator."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from fb3.errors import Fb3Error
from fb3.essays import Encoded, special_tokens
from fb3.recipe.groups import Augment


def augmented(encoded: Encoded, tokenizer: Tokenizer, settings: Augment, seed: int) -> Encoded:
    """The same essays, each drawn with other changes every time; their `lengths` stay those of the plain ones.

    Args:
        encoded: all essays' tokens.
        tokenizer: knows the special tokens, which stay untouched, and the mask.
        settings: what is done, and how often.
        seed: the draws depend on it and on their order alone.

    Raises:
        Fb3Error: tokens shall be masked, and the tokenizer has no mask.
    """
    mask = next((i for word in ("[MASK]", "<mask>") if (i := tokenizer.token_to_id(word)) is not None), None)
    if settings.mask and mask is None:
        raise Fb3Error("data.augment.mask: this tokenizer has neither [MASK] nor <mask>; use delete")
    prefix, suffix = special_tokens(tokenizer)
    return replace(encoded, rows=_Drawn(encoded.rows, len(prefix), len(suffix), mask, settings, seed))


class _Drawn(Sequence):
    """Rows that change when they are taken."""

    def __init__(
        self, rows: Sequence[np.ndarray], prefix: int, suffix: int, mask: int | None, settings: Augment, seed: int
    ) -> None:
        self.rows, self.prefix, self.suffix, self.mask, self.settings = rows, prefix, suffix, mask, settings
        self.rng = np.random.default_rng([seed, 7])  # apart from the generator of the batches' order

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        tokens = self.rows[row]
        end = len(tokens) - self.suffix
        inner = change(tokens[self.prefix : end], self.mask, self.settings, self.rng)
        return np.concatenate([tokens[: self.prefix], inner, tokens[end:]])


def change(tokens: np.ndarray, mask: int | None, settings: Augment, rng: np.random.Generator) -> np.ndarray:
    """One draw: a span cut out, tokens deleted, neighbours swapped, tokens masked, in this order; never all of them."""
    if settings.cut and len(tokens) > 1:
        size = int(settings.cut * len(tokens))
        start = int(rng.integers(0, len(tokens) - size + 1))
        tokens = np.concatenate([tokens[:start], tokens[start + size :]])
    if settings.delete and len(tokens) > 1:
        kept = rng.random(len(tokens)) >= settings.delete
        kept[rng.integers(len(tokens))] = True
        tokens = tokens[kept]
    if settings.swap and len(tokens) > 1:
        tokens = tokens.copy()
        for left in np.flatnonzero(rng.random(len(tokens) - 1) < settings.swap):
            tokens[left], tokens[left + 1] = tokens[left + 1], tokens[left]
    if settings.mask:
        tokens = np.where(rng.random(len(tokens)) < settings.mask, mask, tokens).astype(tokens.dtype)
    return tokens
