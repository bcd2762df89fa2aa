"""Changes of an essay's text: sentences shuffled, words replaced by synonyms, letters mistyped."""

import re
from pathlib import Path

import numpy as np

from fb3.errors import Fb3Error
from fb3.system.files import read_utf8

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"(?<!\[)\b[^\W\d_]{2,}\b(?!\])")  # two letters at least; not [BR], which is a token
Synonyms = dict[str, list[str]]  # synonyms of each lower-case word


def shuffled(text: str, rng: np.random.Generator) -> str:
    """The sentences in another order."""
    sentences = _SENTENCE_END.split(text)
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def mistyped(text: str, share: float, rng: np.random.Generator) -> str:
    """A share of the words with one slip: two letters swapped, one left out, or one doubled."""

    def slip(match: re.Match) -> str:
        word = match.group()
        if rng.random() >= share:
            return word
        at, kind = int(rng.integers(len(word) - 1)), rng.integers(3)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + word[at + 1 :] if kind == 1 else word[: at + 1] + word[at:]

    return _WORD.sub(slip, text)


def replaced(text: str, synonyms: Synonyms, share: float, rng: np.random.Generator) -> str:
    """A share of the words that have synonyms replaced by one of them, a capital kept."""

    def other(match: re.Match) -> str:
        word = match.group()
        known = synonyms.get(word.lower())
        if not known or rng.random() >= share:
            return word
        chosen = known[int(rng.integers(len(known)))]
        return chosen[0].upper() + chosen[1:] if word[0].isupper() else chosen

    return _WORD.sub(other, text)


def read_synonyms(path: str | Path) -> Synonyms:
    """Reads a word list: on each line words that may stand for one another, separated by commas.

    Raises:
        Fb3Error: no such file, not UTF-8, or a line with fewer than two words.
    """
    try:
        lines = read_utf8(Path(path)).splitlines()
    except Fb3Error as error:
        raise Fb3Error(f"augment.synonyms.file: {error}") from None
    found: Synonyms = {}
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in line.split(",") if word.strip()]
        if line.strip() and len(set(map(str.lower, words))) < 2:
            raise Fb3Error(f"{path}: line {number} holds {words}; want two words at least, separated by commas")
        for word in words:
            found.setdefault(word.lower(), []).extend(w for w in words if w.lower() != word.lower())
    if not found:
        raise Fb3Error(f"{path}: no words in it")
    return found
