import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fb3.data.tokenizer import special_tokens
from fb3.data.tokens import tokenise, truncate
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.recipe.data import DataSettings


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 300)


def test_tokens_are_those_of_transformers(tokenizer, texts):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **SPECIAL)
    for limit in (16, 64, 4096):
        ours = tokenise([*texts, ""], tokenizer, 0, DataSettings(max_length=limit))
        expected = theirs([*texts, ""], truncation=True, max_length=limit)["input_ids"]
        assert [row.tolist() for row in ours.rows] == expected


@pytest.mark.parametrize("how", ["head", "tail", "head_tail"])
def test_truncation_keeps_special_tokens_and_the_named_end(tokenizer, texts, how):
    whole = tokenise(texts[:1], tokenizer, 0, DataSettings(max_length=4096)).rows[0]
    cut = tokenise(texts[:1], tokenizer, 0, DataSettings(max_length=21, truncation=how)).rows[0]
    assert len(cut) == 21
    assert (cut[0], cut[-1]) == (whole[0], whole[-1])
    inner = whole[1:-1]
    expected = {"head": inner[:19], "tail": inner[-19:], "head_tail": np.concatenate([inner[:10], inner[-9:]])}
    assert cut[1:-1].tolist() == expected[how].tolist()


@given(st.lists(st.integers(), max_size=30), st.integers(1, 30), st.sampled_from(["head", "tail", "head_tail"]))
def test_truncate_never_exceeds_the_room_and_leaves_short_texts(ids, room, how):
    cut = truncate(ids, room, how)
    assert len(cut) == min(len(ids), room)
    if len(ids) <= room:
        assert cut == ids


def test_no_room_beside_special_tokens(tokenizer):
    assert tuple(map(len, special_tokens(tokenizer))) == (1, 1)
    assert all(len(row) == 8 for row in tokenise(["word " * 50], tokenizer, 0, DataSettings(max_length=8)).rows)
