"""Vectors that are trained on texts."""

import numpy as np
import pytest

from fb3.data import word_cooccurrence
from fb3.data.word_cooccurrence import train_word_vectors
from fb3.errors import Fb3Error

TEXTS = [[0, 1, 2, -1, 3], [2, 1, 0, 4, 4], [], [5], [3, 5, 1, 0, 2, 4, 0]]


def test_the_products_of_vectors_are_the_positive_mutual_information(monkeypatch):
    """Counted pair by pair; vectors of as many numbers as the matrix has ranks but one nearly give it back."""
    monkeypatch.setattr(word_cooccurrence, "_AT_ONCE", 2)
    counts = np.zeros((6, 6))
    for text in TEXTS:
        for here, one in enumerate(text):
            for there, other in enumerate(text):
                if 0 < (far := abs(here - there)) <= 3 and min(one, other) >= 0:
                    counts[one, other] += (4 - far) / 3
    totals = counts.sum(1)
    chance = totals**0.75 / (totals**0.75).sum()
    with np.errstate(divide="ignore"):
        wanted = np.maximum(np.log(counts / (totals[:, None] * chance)), 0)
    got = word_cooccurrence._positive_information(word_cooccurrence._neighbours(TEXTS, 6, 3)).toarray()
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    left, values, _ = np.linalg.svd(wanted)
    ours = train_word_vectors(TEXTS, 6, 3, 3)
    scaled = left[:, :3] * np.sqrt(values[:3])
    scaled /= np.sqrt((scaled**2).mean(1, keepdims=True))
    np.testing.assert_allclose(ours @ ours.T, scaled @ scaled.T, atol=1e-4)  # singular vectors have any sign
    np.testing.assert_array_equal(ours, train_word_vectors(TEXTS, 6, 3, 3))


@pytest.mark.parametrize(("texts", "size", "words"), [(TEXTS, 6, "a smaller size"), ([[0], [1]], 1, "more texts")])
def test_texts_that_give_no_vectors_are_refused(texts, size, words):
    with pytest.raises(Fb3Error, match=words):
        train_word_vectors(texts, 6, size, 2)
