"""Word vectors trained on texts: positive pointwise mutual information of words that stand near each other, and its
singular vectors (Levy & Goldberg 2014, NIPS, "Neural Word Embedding as Implicit Matrix Factorization").

Seconds on some thousand essays, and always the same vectors.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fb3.errors import Fb3Error
from fb3.system.progress import progress

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_AT_ONCE = 1000  # texts counted at once
_SMOOTHING = 0.75  # power of the neighbours' frequencies, as in word2vec (Levy et al. 2015, TACL 3)


def train_word_vectors(texts: Sequence[Sequence[int]], words: int, size: int, window: int) -> np.ndarray:
    """Vectors of a vocabulary, (words, size) float32, all of one length: their numbers have the root mean square 1.

    Args:
        texts: each text's words by their places in the vocabulary, -1 for a word that it lacks.
        words: size of the vocabulary.
        size: numbers of a vector.
        window: words on each side that count as neighbours, nearer ones more.

    Raises:
        Fb3Error: too few words for the size.
    """
    from scipy.sparse.linalg import svds

    if words <= size:
        raise Fb3Error(f"--size {size}: the texts hold only {words} words that occur twice; give a smaller size")
    information = _positive_information(_neighbours(texts, words, window))
    if not information.nnz:
        raise Fb3Error("--train: no two words of the texts stand together more often than by chance; give more texts")
    start = np.random.default_rng(0).normal(size=words)
    left, values, _ = svds(information, size, v0=start)
    vectors = left * np.sqrt(values)
    lengths = np.sqrt(np.mean(vectors**2, 1, keepdims=True))
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def _neighbours(texts: Sequence[Sequence[int]], words: int, window: int) -> "csr_matrix":
    """How often each word stands near each other one, (words, words): weight 1 side by side, less further off."""
    from scipy.sparse import coo_matrix, csr_matrix

    total = csr_matrix((words, words))
    with progress("counts neighbours", len(texts)) as advance:
        for start in range(0, len(texts), _AT_ONCE):
            part = texts[start : start + _AT_ONCE]
            for distance, one, other in _pairs(part, window):
                weight = np.full(len(one), (window + 1 - distance) / window)
                total = total + coo_matrix((weight, (one, other)), shape=(words, words)).tocsr()
            advance(len(part))
    return total + total.T


def _pairs(texts: Sequence[Sequence[int]], window: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """By distance, the known words that stand so far from each other in one text."""
    flat = np.concatenate([np.asarray(text, np.int64) for text in texts])
    text_of = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    for distance in range(1, min(window + 1, len(flat))):
        one, other = flat[:-distance], flat[distance:]
        near = (text_of[:-distance] == text_of[distance:]) & (one >= 0) & (other >= 0)
        yield distance, one[near], other[near]


def _positive_information(counts: "csr_matrix") -> "csr_matrix":
    """max(0, ln(p(a, b) / (p(a) p(b)))), p(b) from the counts to the power 0.75."""
    from scipy.sparse import csr_matrix

    totals = np.asarray(counts.sum(1)).ravel() if counts.nnz else np.ones(counts.shape[0])
    chance = totals**_SMOOTHING / (totals**_SMOOTHING).sum()
    pairs = counts.tocoo()
    information = np.log(pairs.data / (totals[pairs.row] * chance[pairs.col]))
    above = information > 0
    return csr_matrix((information[above], (pairs.row[above], pairs.col[above])), shape=counts.shape)
