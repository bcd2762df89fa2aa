"""Sliding windows: they cover an essay, keep prefix and suffix, and are nothing where a text fits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fb3.data.batches import collate, inference_batches
from fb3.data.tokens import Encoded, tokenise
from fb3.data.windows import WindowSplitter
from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.models.from_scratch import train_tokenizer
from fb3.prediction.inference_loop import predict
from fb3.prediction.token_budget import Budget
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings, WindowsSettings
from fb3.tasks.build import build_task


@given(
    inner=st.integers(0, 200),
    length=st.integers(4, 30),
    share=st.one_of(st.none(), st.floats(0.1, 1.0)),
    prefix=st.integers(0, 2),
    suffix=st.integers(0, 1),
)
def test_windows_cover_every_token_within_their_length_and_keep_prefix_and_suffix(inner, length, share, prefix, suffix):
    room = length - prefix - suffix
    stride = None if share is None else max(1, int(share * room))
    tokens = np.array([*range(-prefix, 0), *range(inner), *[999] * suffix])
    windows = WindowSplitter(length, stride, prefix, suffix).split(tokens)
    assert all(len(window) <= length for window in windows)
    assert {t for w in windows for t in w} == set(tokens)
    parts = [window[prefix : len(window) - suffix] for window in windows]
    for window, part in zip(windows, parts, strict=True):
        assert list(window[:prefix]) == list(range(-prefix, 0))
        assert list(window[len(window) - suffix :]) == [999] * suffix
        assert list(part) == list(range(part[0], part[0] + len(part))) if len(part) else len(windows) == 1
    if stride is None:
        assert sum(map(len, parts)) == inner, "parts do not overlap"
        assert len(windows) == max(1, -(-inner // room)), "no more of them than it needs"
    if len(tokens) <= length:
        assert len(windows) == 1
        assert windows[0] is tokens


@pytest.fixture(scope="module")
def tokenizer(texts):
    return Tokenizer.from_str(train_tokenizer(texts, 300).to_str())


def test_a_batch_knows_whose_windows_are_whose(tokenizer, texts):
    data = DataSettings(max_length=64, windows=WindowsSettings(length=16))
    encoded = tokenise([texts[0], "short", texts[1]], tokenizer, 0, data)
    assert encoded.lengths[1] == len(encoded.rows[1])
    batch = collate(encoded, np.array([2, 1]), np.zeros((3, 6), np.float32))
    assert batch["input_ids"].shape[1] <= 16
    assert batch["targets"].shape == (2, 6)
    assert batch["row"].tolist() == [2, 1]
    places = batch["windows"][0][batch["window_mask"][0].bool()]
    seen = [batch["input_ids"][w][batch["attention_mask"][w].bool()][1:-1] for w in places]
    assert torch.cat(seen).tolist() == encoded.rows[2][1:-1].tolist()
    assert batch["window_mask"][1].tolist() == [1] + [0] * (len(places) - 1)
    assert batch["input_ids"].numel() <= encoded.lengths[[2, 1]].max() * 2


def test_the_token_budget_counts_all_windows():
    splitter = WindowSplitter(8, 4, 0, 0)
    rows = [np.arange(n) for n in (30, 20, 8, 5, 3)]
    encoded = Encoded(rows, 0, np.array([sum(map(len, splitter.split(row))) for row in rows]), splitter)
    for batch in inference_batches(encoded.lengths, np.arange(5), 100):
        assert collate(encoded, batch)["input_ids"].numel() <= 100


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_windows_of_a_short_text_are_no_windows(run, tiny, texts, pool):
    plain = tiny.model_copy(update={"data": DataSettings(max_length=64)})
    windowed = tiny.model_copy(
        update={"data": DataSettings(max_length=80, windows=WindowsSettings(length=64, pool=pool))}
    )
    scores = []
    for recipe in (plain, windowed):
        torch.manual_seed(1)
        scorer = build_scorer(recipe, run / "encoder", init="config").eval()
        torch.manual_seed(2)
        torch.nn.init.normal_(scorer.head.linear.weight)
        torch.nn.init.zeros_(scorer.head.linear.bias)
        encoder = Tokenizer.from_file(str(run / "encoder" / "tokenizer.json"))
        encoded = tokenise([text[:60] for text in texts[:3]], encoder, 0, recipe.data)
        with torch.no_grad():
            scores.append(scorer(collate(encoded, np.arange(3))).scores)
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)


def test_windows_that_lose_text_are_refused():
    with pytest.raises(Fb3Error, match="passes over text"):
        load_recipe("tiny", ["data.windows={length: 64, stride: 64}"])


def test_a_stride_beyond_the_room_is_refused(tokenizer):
    data = DataSettings(max_length=64, windows=WindowsSettings(length=16, stride=15))
    with pytest.raises(Fb3Error, match="at most 14"):
        tokenise(["word"], tokenizer, 0, data)


@pytest.fixture
def long_essay(run, tiny, texts):
    """A scorer that takes windows, its task, essays of which the second has many, their ids."""
    data = DataSettings(max_length=400, windows=WindowsSettings(length=16))
    recipe = tiny.model_copy(update={"data": data})
    torch.manual_seed(1)
    scorer = build_scorer(recipe, run / "encoder", init="config").eval()
    torch.nn.init.normal_(scorer.head.linear.weight)
    tokenizer = Tokenizer.from_file(str(run / "encoder" / "tokenizer.json"))
    encoded = tokenise([texts[0][:60], " ".join(texts[:5]), texts[1][:80]], tokenizer, 0, data)
    assert encoded.total_lengths[1] > 400
    return scorer, build_task(recipe), encoded, np.arange(3)


@pytest.fixture
def most_inputs(monkeypatch):
    """A memory that holds so many inputs at once; the largest that were asked of it."""

    def holds(room, scorer):
        seen, real = [], scorer.encoder.forward

        def forward(input_ids, **given):
            seen.append(len(input_ids))
            if len(input_ids) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(input_ids=input_ids, **given)

        monkeypatch.setattr(scorer.encoder, "forward", forward)
        return seen

    return holds


@pytest.mark.parametrize("budget", [10, 64, 200])
def test_windows_of_one_essay_beyond_the_budget_are_computed_in_parts(long_essay, most_inputs, budget):
    """The same scores; and only in prediction, which leaves the scorer as it was."""
    scorer, _, encoded, _ = long_essay
    plain = predict(*long_essay, token_budget=10**6, shown=False)
    seen = most_inputs(10**6, scorer)
    parted = predict(*long_essay, token_budget=budget, shown=False)
    assert max(seen) == max(1, budget // 16)
    np.testing.assert_allclose(parted.values, plain.values, atol=1e-5)
    seen.clear()
    scorer(collate(encoded, np.array([1])))
    assert seen == [len(encoded.splitter.split(encoded.rows[1]))]


def test_an_essay_whose_windows_memory_does_not_hold_is_halved_down_to_one(long_essay, most_inputs, capsys):
    scorer, _, encoded, _ = long_essay
    plain = predict(*long_essay, token_budget=10**6, shown=False)
    seen = most_inputs(3, scorer)
    parted = predict(*long_essay, token_budget=10**6, shown=False)
    np.testing.assert_allclose(parted.values, plain.values, atol=1e-5)
    said = capsys.readouterr().err
    assert f"out of memory with one essay of {encoded.total_lengths[1]} tokens; now " in said
    assert set(seen[-3:]) <= {1, 2, 3}
    most_inputs(0, scorer)
    with pytest.raises(Fb3Error, match="memory does not suffice for one window of 16 tokens"):
        predict(*long_essay, token_budget=10**6, shown=False)


def test_parts_of_an_essay_do_not_mislead_the_measuring(long_essay, monkeypatch):
    """A token's memory is what was held at once divided by the tokens computed at once."""
    told, real = [], Budget.end
    monkeypatch.setattr(Budget, "end", lambda self, tokens: told.append(tokens) or real(self, tokens))
    predict(*long_essay, token_budget=100, shown=False)
    assert max(told) <= 100
