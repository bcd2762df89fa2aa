"""Augmentation: what changes, what stays, and that a seed fixes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fb3.data.augmentation.augmented_essays import augment_essays
from fb3.data.augmentation.text_changes import mistyped, read_synonyms, replaced, shuffled
from fb3.data.augmentation.token_changes import change, spliced
from fb3.data.tokens import tokenise
from fb3.errors import Fb3Error
from fb3.models.from_scratch import train_tokenizer
from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.data import DataSettings

MASK = 999
TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=60)
SHARE = st.floats(0, 0.9)


@given(tokens=TOKENS, mask=SHARE, delete=SHARE, swap=SHARE, cut=SHARE, seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_only_tokens_that_were_there_or_masks_and_never_none(tokens, mask, delete, swap, cut, seed):
    tokens = np.array(tokens, np.int32)
    before = tokens.copy()
    chosen = AugmentSettings.model_construct(mask=mask, delete=delete, swap=swap, cut=cut)
    out = change(tokens, MASK, chosen, np.random.default_rng(seed))
    assert 1 <= len(out) <= len(tokens)
    assert out.dtype == tokens.dtype
    assert np.array_equal(tokens, before), "the plain essay stays"
    left = sorted(out[out != MASK].tolist())
    for token in set(left):
        assert left.count(token) <= before.tolist().count(token)
    if not mask:
        assert MASK not in out
    if not (mask or delete or cut):
        assert sorted(out) == sorted(before), "swapping keeps all"


@pytest.mark.parametrize(
    ("key", "share", "measure"),
    [
        ("mask", 0.15, lambda plain, out: (out == MASK).mean()),
        ("delete", 0.1, lambda plain, out: 1 - len(out) / len(plain)),
        ("cut", 0.2, lambda plain, out: 1 - len(out) / len(plain)),
    ],
)
def test_each_does_as_much_as_it_says(key, share, measure):
    plain = np.arange(400, dtype=np.int32)
    rng = np.random.default_rng(0)
    found = [measure(plain, change(plain, MASK, AugmentSettings(**{key: share}), rng)) for _ in range(60)]
    assert np.mean(found) == pytest.approx(share, abs=0.02)


def test_a_cut_takes_one_span():
    out = change(np.arange(100), MASK, AugmentSettings(cut=0.3), np.random.default_rng(1))
    assert len(out) == 70
    assert (np.diff(out) != 1).sum() <= 1


@pytest.fixture(scope="module")
def tokenizer(texts):
    return Tokenizer.from_str(train_tokenizer(texts, 300).to_str())


def test_special_tokens_stay_and_a_seed_fixes_the_draws(tokenizer, texts):
    data, chosen = DataSettings(max_length=64), AugmentSettings(mask=0.3, delete=0.2, swap=0.2)
    encoded = tokenise(texts[:5], tokenizer, 0, data)
    one, two, other = (augment_essays(encoded, texts, tokenizer, data, chosen, seed) for seed in (1, 1, 2))
    rows = np.repeat(np.arange(5), 2)
    draws = [each.draw(rows, None)[0] for each in (one, two, other)]
    for a, b in zip(draws[0], draws[1], strict=True):
        assert np.array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert not np.array_equal(draws[0][0], draws[0][1]), "new changes each time"
    for i, row in enumerate(draws[0]):
        plain = encoded.rows[i // 2]
        assert row[0] == plain[0]
        assert row[-1] == plain[-1]
    assert np.array_equal(one.lengths, encoded.lengths)


def test_a_tokenizer_without_a_mask_is_told():
    from tokenizers.models import WordLevel

    bare = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    encoded = tokenise(["a a"], bare, 0, DataSettings())
    with pytest.raises(Fb3Error, match="neither"):
        augment_essays(encoded, ["a a"], bare, DataSettings(), AugmentSettings(mask=0.1), 0)
    deleting = augment_essays(encoded, ["a a"], bare, DataSettings(), AugmentSettings(delete=0.5), 0)
    assert len(deleting.draw(np.array([0]), None)[0]) == 1


SENTENCES = "First one. Second here! A third? Last without end"


@given(seed=st.integers(0, 99))
def test_shuffling_keeps_the_sentences(seed):
    rng = np.random.default_rng(seed)
    assert sorted(shuffled(SENTENCES, rng).split()) == sorted(SENTENCES.split())


@given(seed=st.integers(0, 99), share=st.floats(0, 1))
def test_a_slip_changes_one_letter_at_most_and_no_token_in_brackets(seed, share):
    text = "[CAP] Nobody wrote a [BR] thing 42"
    out = mistyped(text, share, np.random.default_rng(seed)).split()
    for before, after in zip(text.split(), out, strict=True):
        assert abs(len(before) - len(after)) <= 1
        assert after == before or before.isalpha()
    assert mistyped(text, 0.0, np.random.default_rng(seed)) == text


def test_every_word_slips_where_all_shall():
    words = ["nobody", "wrote", "anything", "yesterday"]
    slipped = mistyped(" ".join(words), 1.0, np.random.default_rng(0)).split()
    assert sum(a != b for a, b in zip(words, slipped, strict=True)) >= 3  # swapped twins, as tt, stay


def test_synonyms_are_those_of_the_list_and_keep_their_capital(tmp_path):
    (tmp_path / "words.txt").write_text("big, large, huge\n\nhouse, home\n")
    known = read_synonyms(tmp_path / "words.txt")
    assert known["large"] == ["big", "huge"]
    rng = np.random.default_rng(0)
    out = {replaced("Big houses, a HOUSE", known, 1.0, rng) for _ in range(50)}
    assert out == {"Large houses, a Home", "Huge houses, a Home"}
    assert replaced("Big", known, 0.0, rng) == "Big"


@pytest.mark.parametrize(("content", "words"), [(b"big\n", "line 1"), (b"", "no words"), (b"\xff", "UTF-8")])
def test_a_broken_word_list_names_file_and_line(tmp_path, content, words):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(Fb3Error, match=words):
        read_synonyms(tmp_path / "words.txt")
    with pytest.raises(Fb3Error, match="cannot be read"):
        read_synonyms(tmp_path / "none.txt")


@given(one=TOKENS, other=TOKENS, share=st.floats(0, 1))
def test_a_splice_is_never_longer_than_the_longer(one, other, share):
    out = spliced(np.array(one), np.array(other), share)
    assert len(out) <= max(len(one), len(other)) + 1
    assert list(out[: int(share * len(one))]) == one[: int(share * len(one))]


def test_mixed_essays_have_mixed_targets(tokenizer, texts):
    data = DataSettings(max_length=64)
    encoded = tokenise(texts[:4], tokenizer, 0, data)
    mixing = augment_essays(encoded, texts, tokenizer, data, AugmentSettings(mix=0.99), 1)
    targets = np.eye(4, dtype=np.float32)
    rows, mixed = mixing.draw(np.arange(4), targets)
    assert np.allclose(mixed.sum(1), 1)
    assert ((mixed > 0).sum(1) <= 2).all()
    assert (mixed.diagonal() < 1).any()
    assert np.array_equal(targets, np.eye(4)), "the truths stay"
    assert all(len(row) <= 64 for row in rows)
    for row in range(4):
        kept = int(mixed[row, row] * (len(encoded.rows[row]) - 2)) + 1
        assert np.array_equal(rows[row][: kept - 1], encoded.rows[row][: kept - 1])


def test_text_is_changed_before_it_is_tokenised(tokenizer, texts):
    data = DataSettings(max_length=256)
    encoded = tokenise(texts[:1], tokenizer, 0, data)
    changed = augment_essays(encoded, texts, tokenizer, data, AugmentSettings(shuffle=0.99), 3).draw(
        np.array([0]), None
    )[0][0]
    assert not np.array_equal(changed, encoded.rows[0])
    assert sorted(changed) == sorted(encoded.rows[0])
