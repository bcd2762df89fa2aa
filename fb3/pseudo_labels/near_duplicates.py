"""Near-duplicates: essays that stand among the labelled ones too, perhaps edited, and would carry their truths over."""

import re
from collections.abc import Sequence

import numpy as np

_WORDS = 5  # in a shingle
SIMILAR = 0.5  # Jaccard similarity of two texts' shingles from which on they count as one essay
_FEATURES = 2**22  # hashed shingles; a collision is counted as one shingle in common
_ROWS = 512  # texts compared with all others at once


def normalised(text: str) -> str:
    """A text without case, punctuation and white space."""
    return re.sub(r"[\W_]+", "", text.casefold())


def near_duplicates(texts: Sequence[str], labelled: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Texts that equal a labelled one, normalised, or whose word 5-grams overlap with its.

    The Jaccard similarity, shingles in common by shingles in either, is computed, not estimated: MinHash (Broder 1997,
    "On the resemblance and containment of documents") estimates it where texts are too many for that.

    Returns:
        By the position of such a text, the position of the labelled text it is most like, and the similarity, 0-1.
    """
    place = {normalised(text): row for row, text in enumerate(labelled)}
    found = {row: (place[key], 1.0) for row, text in enumerate(texts) if (key := normalised(text)) in place}
    ours, theirs = _shingles(texts), _shingles(labelled)
    sizes, transposed = theirs.getnnz(1), theirs.T.tocsr()
    for start in range(0, len(texts), _ROWS):
        common = (ours[start : start + _ROWS] @ transposed).tocoo()
        rows = common.row + start
        similarity = common.data / (ours.getnnz(1)[rows] + sizes[common.col] - common.data)
        for at in np.flatnonzero(similarity >= SIMILAR):
            row, other = int(rows[at]), int(common.col[at])
            found[row] = max(found.get(row, (other, 0.0)), (other, float(similarity[at])), key=lambda pair: pair[1])
    return found


def _shingles(texts: Sequence[str]):
    """The set of each text's shingles, a sparse (N, features) matrix of 0 and 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(_WORDS, _WORDS), token_pattern=r"\w+", n_features=_FEATURES, norm=None, binary=True, dtype=np.int32
    )
    return vectorizer.transform(texts)
