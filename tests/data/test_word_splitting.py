"""Texts become the words that a table of vectors has."""

from collections import Counter

import pytest

from fb3.data.word_splitting import PAD, UNKNOWN, WordSplitter, best_split, kept_words

TEXT = "Don’t say it's Ann's: I can't, don't."


@pytest.mark.parametrize(
    ("words", "split", "pieces"),
    [
        ("do n't say it 's ann i ca : , .", "treebank", "do n't say it 's ann 's : i ca n't , do n't ."),
        ("don't say it's ann's i can't : , .", "apostrophes", "don't say it's ann's : i can't , don't ."),
        ("don t say it s ann i can ' : , .", "marks", "don ' t say it ' s ann ' s : i can ' t , don ' t ."),
    ],
)
def test_the_split_is_the_one_whose_words_the_vectors_have(words, split, pieces):
    splitter, counts = best_split(words.split(), [TEXT])
    assert (splitter.split, splitter.lower) == (split, True)
    assert splitter(TEXT) == pieces.split()
    assert counts == Counter(pieces.split())


def test_capitals_stay_where_the_vectors_have_them_and_a_word_they_lack_takes_its_small_letters():
    lines = {"Paris": 0, "paris": 1, "New_York": 2, "however": 3, "rare": 4, ". .": 5, "the": 6}
    splitter, counts = best_split(lines, ["However, PARIS"])
    assert not splitter.lower
    kept = kept_words(lines, splitter, counts, most=3)
    assert {word: kept[word] for word in ("Paris", "paris", "PARIS")} == {"Paris": 0, "paris": 1, "PARIS": 1}
    assert {word: kept[word] for word in ("However", "however", "HOWEVER")} == dict.fromkeys(
        ("However", "however", "HOWEVER"), 3
    )
    assert not {"New_York", ". .", "rare", "the"} & kept.keys()  # no text holds the first two as one word


def test_the_tokenizer_splits_as_the_words_were_counted():
    splitter = WordSplitter("treebank", lower=True)
    tokenizer = splitter.tokenizer([PAD, UNKNOWN, *sorted(set(splitter(TEXT)))])
    assert tokenizer.encode(TEXT).tokens == splitter(TEXT)
    assert tokenizer.encode("Zebra say").tokens == [UNKNOWN, "say"]
    assert tokenizer.encode("").ids == []
