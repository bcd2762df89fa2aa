"""Changes of an essay's tokens; special tokens are not among them."""

import numpy as np

from fb3.recipe.augmentation import AugmentSettings


def change(tokens: np.ndarray, mask_id: int | None, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """Cuts a span out, deletes tokens, swaps neighbours and masks tokens, in this order. One token at least is left."""
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
        tokens = np.where(rng.random(len(tokens)) < settings.mask, mask_id, tokens).astype(tokens.dtype)
    return tokens


def spliced(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """The first `share` of one essay's tokens, then the rest of another's after the same share."""
    return np.concatenate([one[: int(share * len(one))], other[int(share * len(other)) :]])
