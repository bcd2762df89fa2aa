"""Augmentation: what changes, what stays, and that a seed fixes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from fb3.augmentation import augmented, change
from fb3.errors import Fb3Error
from fb3.essays import tokenise
from fb3.models.scratch import train_tokenizer
from fb3.recipe.groups import Augment, DataGroup

MASK = 999
TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=60)
SHARE = st.floats(0, 0.9)


@given(tokens=TOKENS, mask=SHARE, delete=SHARE, swap=SHARE, cut=SHARE, seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_only_tokens_that_were_there_or_masks_and_never_none(tokens, mask, delete, swap, cut, seed):
    tokens = np.array(tokens, np.int32)
    before = tokens.copy()
    chosen = Augment.model_construct(mask=mask, delete=delete, swap=swap, cut=cut)
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
    found = [measure(plain, change(plain, MASK, Augment(**{key: share}), rng)) for _ in range(60)]
    assert np.mean(found) == pytest.approx(share, abs=0.02)


def test_a_cut_takes_one_span():
    out = change(np.arange(100), MASK, Augment(cut=0.3), np.random.default_rng(1))
    assert len(out) == 70
    assert (np.diff(out) != 1).sum() <= 1


@pytest.fixture(scope="module")
def tokenizer(texts):
    return Tokenizer.from_str(train_tokenizer(texts, 300).to_str())


def test_special_tokens_stay_and_a_seed_fixes_the_draws(tokenizer, texts):
    encoded = tokenise(texts[:5], tokenizer, 0, DataGroup(max_length=64))
    chosen = Augment(mask=0.3, delete=0.2, swap=0.2)
    one, two, other = (augmented(encoded, tokenizer, chosen, seed) for seed in (1, 1, 2))
    draws = [[rows.rows[i] for i in range(5) for _ in range(2)] for rows in (one, two, other)]
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
    encoded = tokenise(["a a"], bare, 0, DataGroup())
    with pytest.raises(Fb3Error, match="neither"):
        augmented(encoded, bare, Augment(mask=0.1), 0)
    assert len(augmented(encoded, bare, Augment(delete=0.5), 0).rows) == 1


def test_nothing_to_do_is_refused():
    with pytest.raises(ValidationError, match="leave it out"):
        Augment()
