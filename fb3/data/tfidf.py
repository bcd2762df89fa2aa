"""TF-IDF: counts of n-grams in texts, and their weights, as scikit-learn's TfidfVectorizer computes them.

Inference may not import scikit-learn. scipy is in the competition's image, and is imported where terms are counted.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fb3.recipe.estimator import TfidfSettings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_WORD = re.compile(r"(?u)\b\w\w+\b")
_SPACES = re.compile(r"\s\s+")


@dataclass(frozen=True)
class TermCounts:
    """How often each term stands in each text: (N, T), columns in the order of `terms`."""

    counts: "csr_matrix"
    terms: list[str]

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each term."""
        return {term: column for column, term in enumerate(self.terms)}

    def of(self, vocabulary: Sequence[str]) -> "csr_matrix":
        """The counts of some terms alone, (N, V); 0 for a term that stands in no text."""
        from scipy.sparse import csr_matrix

        known = [(place, self.columns[term]) for place, term in enumerate(vocabulary) if term in self.columns]
        places, columns = np.array(known, np.int64).reshape(-1, 2).T
        found = self.counts[:, columns].tocoo()
        return csr_matrix((found.data, (found.row, places[found.col])), (self.counts.shape[0], len(vocabulary)))


def count_terms(texts: Sequence[str], settings: TfidfSettings) -> TermCounts:
    """Counts all terms of N texts."""
    from scipy.sparse import csr_matrix

    columns: dict[str, int] = {}
    data, indices, starts = [], [], [0]
    split = _word_terms if settings.of == "words" else _character_terms
    for text in texts:
        found = Counter(split(text.lower(), settings))
        indices += [columns.setdefault(term, len(columns)) for term in found]
        data += found.values()
        starts.append(len(indices))
    return TermCounts(csr_matrix((data, indices, starts), (len(texts), len(columns)), np.float64), list(columns))


def _word_terms(text: str, settings: TfidfSettings) -> Iterator[str]:
    words = _WORD.findall(text)
    for size in range(settings.shortest, settings.longest + 1):
        yield from (" ".join(words[start : start + size]) for start in range(len(words) - size + 1))


def _character_terms(text: str, settings: TfidfSettings) -> Iterator[str]:
    """N-grams of characters within words; a word shorter than an n-gram gives itself, once."""
    for word in _SPACES.sub(" ", text).split():
        padded = f" {word} "
        for size in range(settings.shortest, settings.longest + 1):
            yield padded[:size]
            yield from (padded[start : start + size] for start in range(1, len(padded) - size + 1))
            if size >= len(padded):
                break


def learn_vocabulary(found: TermCounts, settings: TfidfSettings) -> tuple[list[str], np.ndarray]:
    """The terms that training texts share, sorted, and the weight of each, log((1 + N) / (1 + texts)) + 1, (V,)."""
    texts = np.bincount(found.counts.indices, minlength=len(found.terms))
    kept = np.flatnonzero(texts >= settings.min_texts)
    if len(kept) > settings.most:
        kept = kept[np.argsort(-texts[kept], kind="stable")[: settings.most]]
    kept = np.array(sorted(kept, key=found.terms.__getitem__), np.int64)
    idf = np.log((1 + found.counts.shape[0]) / (1 + texts[kept])) + 1
    return [found.terms[column] for column in kept], idf


def tfidf(counts: "csr_matrix", idf: np.ndarray) -> "csr_matrix":
    """Counts (N, V) to rows of length 1: (1 + log count) · idf; a text without any term stays 0."""
    out = counts.copy()
    out.data = (1 + np.log(out.data)) * idf[out.indices]
    lengths = np.sqrt(np.asarray(out.multiply(out).sum(1))).ravel()
    out.data /= np.repeat(np.maximum(lengths, np.finfo(float).tiny), np.diff(out.indptr))
    return out
