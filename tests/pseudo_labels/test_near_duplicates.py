"""Near-duplicates of labelled essays are found, whatever was edited in them; other essays are kept."""

import random

import numpy as np
import pytest

from fb3.demo.synthetic import make_essays
from fb3.pseudo_labels.near_duplicates import SIMILAR, near_duplicates, normalised


def jaccard(one, other):
    """The similarity of two texts' word 5-grams, by Python's sets."""
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split()))
    return len(a & b) / len(a | b)


def words(count, draw):
    return " ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(count))


@pytest.mark.parametrize("seed", range(5))
def test_planted_copies_are_found_with_their_similarity_and_others_kept(seed):
    draw = random.Random(seed)
    labelled = [words(draw.randint(60, 300), draw) for _ in range(40)]
    texts, planted = [], {}
    for row in range(60):
        if row % 3:
            texts.append(words(200, draw))
            continue
        source = draw.randrange(40)
        copy = labelled[source].split()
        for place in draw.sample(range(len(copy)), draw.randint(0, len(copy) // 12)):
            copy[place] = words(1, draw)
        texts.append(" ".join(copy[draw.randint(0, 9) :]))
        planted[row] = source
    found = near_duplicates(texts, labelled)
    exact = {row: jaccard(texts[row], labelled[source]) for row, source in planted.items()}
    assert {row: pair[0] for row, pair in found.items()} == {
        row: planted[row] for row, similarity in exact.items() if similarity >= SIMILAR
    }
    assert len(found) > 5
    for row, (_, similarity) in found.items():
        assert similarity == pytest.approx(exact[row], abs=0.01)  # hashed shingles may collide


def test_case_punctuation_and_white_space_do_not_hide_a_copy():
    labelled = ["Dogs bark. Cats sleep!", "Another text"]
    found = near_duplicates(["dogs BARK,\n\ncats   sleep", "Dogs bark", "", "another... text?"], labelled)
    assert found == {0: (0, 1.0), 3: (1, 1.0)}
    assert normalised("Straße, 5_a") == "strasse5a"


def test_essays_of_one_competition_are_no_copies_of_each_other():
    essays = [essay.text for essay in make_essays(60, seed=1)]
    assert near_duplicates(essays[30:], essays[:30]) == {}
    assert list(near_duplicates(np.array(essays), essays)) == list(range(60))
