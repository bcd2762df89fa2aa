"""Masking: the tokens of a text that an encoder in pretraining is to guess."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from fb3.data.tokenizer import special_tokens
from fb3.errors import Fb3Error
from fb3.recipe.pretraining import MaskingSettings

IGNORED = -100  # label of a place that is not to be guessed
_LONGEST_WORD = 8  # tokens: a script without spaces, or an address, would be masked whole
_BURN_IN = 10  # runs before the text, so that its beginning is masked as often as its middle
_SPAN = 0.2 * 0.8 ** np.arange(10)
# Chances of a run of 1, 2, ... words.
_RUNS = {"ngrams": np.array([6.0, 3.0, 2.0]) / 11.0, "spans": _SPAN / _SPAN.sum()}


@dataclass(frozen=True)
class Vocabulary:
    """mask: the mask's id. special: ids of special tokens, which are never masked. words: ids of all other tokens."""

    mask: int
    special: np.ndarray
    words: np.ndarray


def mask_token(tokenizer: Tokenizer) -> int | None:
    """The id of the mask; none where the tokenizer has none."""
    return next((i for word in ("[MASK]", "<mask>") if (i := tokenizer.token_to_id(word)) is not None), None)


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer; an Fb3Error where it has no mask.

    Special are the tokens that the tokenizer itself calls so: [CLS], the unknown token, and fb3's own such as [BR].
    A character that got a token of its own is a word, since its embedding has to be learned.
    """
    mask = mask_token(tokenizer)
    if mask is None:
        raise Fb3Error(
            "pretrain.objectives: this tokenizer has neither [MASK] nor <mask>, so no token can be hidden; take simcse "
            "or order, or another backbone"
        )
    special = special_ids(tokenizer)
    return Vocabulary(mask, special, np.setdiff1d(list(tokenizer.get_vocab().values()), special))


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of the mask, of the tokens around a text, and of all that the tokenizer itself calls special."""
    called = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    before, after = special_tokens(tokenizer)
    return np.array(sorted({*called, *before, *after, *filter(None, [mask_token(tokenizer)])}), np.int64)


def words_of(encoding: Encoding, special: np.ndarray) -> np.ndarray:
    """The number of each token's word, (T,) int32, rising; -1 for a special token, which is in no word.

    The tokenizer's own numbers count, and not the tokens' places in the text: a tokenizer whose tokens begin with the
    space before them leaves no gap between two words. A mark of a space begins a word too, for tokenizers that do not
    split at spaces.
    """
    ids, tokens = np.array(encoding.ids, np.int64), encoding.tokens
    numbers = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
    begins = np.diff(numbers, prepend=-2) != 0
    begins |= np.fromiter((token.startswith(("▁", "Ġ")) for token in tokens), bool, len(tokens))
    starts = np.flatnonzero(begins)
    place = np.arange(len(ids)) - np.repeat(starts, np.diff(starts, append=len(ids)))  # within the word
    words = np.cumsum(begins | (place % _LONGEST_WORD == 0)) - 1
    return np.where(np.isin(ids, special), -1, words).astype(np.int32)


def mask_tokens(
    ids: np.ndarray, words: np.ndarray, settings: MaskingSettings, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hides a share of a text's tokens.

    Args:
        ids: the text's tokens, (T,).
        words: the number of each token's word, (T,), -1 where it is never masked; see `words_of`.
        settings: kind and shares.
        vocabulary: the tokenizer's.
        rng: draws; the same state draws the same.

    Returns:
        The tokens that the encoder reads, and the labels, (T,) each: the token at a hidden place, IGNORED elsewhere.
    """
    free, chosen = words >= 0, np.zeros(len(ids), bool)
    if settings.kind == "tokens":
        chosen[free] = rng.random(int(free.sum())) < settings.share
    elif free.any():
        _, number = np.unique(words[free], return_inverse=True)
        chosen[free] = choose_words(int(number.max()) + 1, settings, rng)[number]
    draw = rng.random(len(ids))
    read = np.where(chosen & (draw < settings.mask), vocabulary.mask, ids)
    other = chosen & (draw >= settings.mask) & (draw < settings.mask + settings.random)
    read[other] = rng.choice(vocabulary.words, int(other.sum()))
    return read.astype(ids.dtype), np.where(chosen, ids, IGNORED).astype(np.int64)


def choose_words(count: int, settings: MaskingSettings, rng: np.random.Generator) -> np.ndarray:
    """The words that are hidden, (count,) bool; n-grams and spans are runs of them, with a word between two runs."""
    if settings.kind == "words":
        return rng.random(count) < settings.share
    return _runs(count, settings.share, _RUNS[settings.kind], rng)


def _runs(count: int, share: float, chances: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Runs of hidden words, of lengths drawn by `chances`, between gaps of a geometric length.

    The gaps' mean makes the share. Unlike drawing until a budget is spent, no run is cut short or merged with another,
    so that the lengths keep their distribution whatever the text's length.
    """
    lengths = np.arange(1, len(chances) + 1)
    run = float(lengths @ np.asarray(chances))
    gap = run * (1.0 - share) / share
    skipped = int(_BURN_IN * (run + gap))
    most = (skipped + count) // 2 + 1  # a gap and a run have two words at least
    steps = np.stack([rng.geometric(1.0 / gap, most), rng.choice(lengths, most, p=chances)], 1).ravel()
    return np.repeat(np.tile([False, True], most), steps)[skipped : skipped + count]
