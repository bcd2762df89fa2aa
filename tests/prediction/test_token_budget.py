"""Tokens a batch: the arithmetic, what is remembered, and a prediction that measures its first batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.prediction import inference_loop as prediction
from fb3.prediction.inference_loop import predict
from fb3.prediction.token_budget import _FIRST, _MOST, _SHARE, Budget, open_budget, tokens_within
from tests.prediction.test_inference_loop import parts  # noqa: F401 - a fixture

BYTES, TOKENS, FREE = st.integers(1, 2**40), st.integers(1, 2**18), st.integers(0, 2**40)


class Memory:
    """A device on which each token of the batch at hand takes so many bytes."""

    def __init__(self, a_token, free):
        self.a_token, self.room, self.tokens, self.started = a_token, free, 0, 0

    def start(self):
        self.started += 1

    def used(self):
        return self.a_token * self.tokens

    def free(self):
        return self.room


@given(BYTES, TOKENS, FREE)
def test_a_budget_stays_within_its_bounds_and_within_the_memory(used, tokens, free):
    found = tokens_within(used, tokens, free)
    assert _FIRST <= found <= _MOST
    assert found == _FIRST or found * used / tokens <= _SHARE * free * (1 + 1e-9)
    assert found == _MOST or (found + 1) * used / tokens >= _SHARE * free * (1 - 1e-9)


@given(BYTES, TOKENS, FREE, st.integers(1, 2**30))
def test_more_room_never_makes_it_smaller_and_hungrier_tokens_never_larger(used, tokens, free, more):
    found = tokens_within(used, tokens, free)
    assert tokens_within(used, tokens, free + more) >= found
    assert tokens_within(used + more, tokens, free) <= found
    assert tokens_within(3 * used, 3 * tokens, free) == pytest.approx(found, abs=1), "bytes a token count"


def measured(memory, found, longest=512, tokens=8192, batch=8192):
    budget = Budget(tokens, longest, memory, "encoder", found)
    if budget.measures:
        budget.begin()
        memory.tokens = batch
        budget.end(batch)
    return budget


def test_the_next_fold_does_not_measure_unless_its_essays_are_longer():
    found, memory = {}, Memory(80_000, 10 * 2**30)
    budget = measured(memory, found)
    assert budget.tokens == int(0.7 * 10 * 2**30 / 80_000)
    assert not budget.measures
    assert [measured(memory, found, longest).tokens for longest in (512, 300)] == [budget.tokens] * 2
    assert memory.started == 1
    memory.a_token = 160_000
    assert measured(memory, found, 1024).tokens == budget.tokens // 2
    assert measured(memory, found, 512).tokens == budget.tokens // 2
    assert memory.started == 2


def test_a_batch_of_a_few_tokens_decides_nothing():
    found, memory = {}, Memory(80_000, 10 * 2**30)
    budget = measured(memory, found, batch=1200)
    assert budget.tokens == 8192
    assert budget.measures
    assert not found


def test_a_halved_budget_is_remembered_and_ends_the_measuring(capsys):
    found, memory = {}, Memory(80_000, 10 * 2**30)
    budget = Budget(8192, 512, memory, "encoder", found)
    budget.halve(np.full(16, 512), "fold 0")
    assert budget.tokens == 4096
    assert not budget.measures
    assert "fold 0: out of memory with 16 essays of 512 tokens; now 4096 tokens a batch" in capsys.readouterr().err
    assert measured(memory, found).tokens == 4096
    assert memory.started == 0
    given = Budget(20_000, 512, key="given", measured=found)
    given.halve(np.array([512, 400, 300]), "fold 0")
    assert Budget(20_000, 512, key="given", measured=found).tokens == 768
    with pytest.raises(Fb3Error, match="memory does not suffice for one essay of 512 tokens"):
        given.halve(np.array([512]), "fold 0")


def test_on_a_cpu_nothing_is_measured_or_remembered(parts):  # noqa: F811
    for wish, tokens in ((None, 4096), (100, 100)):
        budget = open_budget(parts[0], torch.device("cpu"), "fp32", 512, wish)
        assert budget.tokens == tokens
        assert not budget.measures
        budget.halve(np.array([40, 30]), "fold 0")
        assert budget.tokens == 40
        assert open_budget(parts[0], torch.device("cpu"), "fp32", 512, wish).tokens == tokens


def test_on_cuda_it_is_measured_for_each_kind_of_encoder_once(parts, monkeypatch):  # noqa: F811
    """Up to the GPU itself: opening asks nothing of it."""
    scorer, device, found = parts[0], torch.device("cuda:0"), {}
    monkeypatch.setattr(Budget.__init__, "__defaults__", (*Budget.__init__.__defaults__[:-1], found))
    budget = open_budget(scorer, device, "bf16", 512)
    assert budget.tokens == 8192
    assert budget.measures
    budget._settle(50_000)
    assert open_budget(scorer, device, "bf16", 400).tokens == 50_000
    other = [(torch.device("cuda:1"), "bf16", 512), (device, "fp32", 512), (device, "bf16", 513)]
    assert [open_budget(scorer, *each).measures for each in other] == [True] * 3
    wished = open_budget(scorer, device, "bf16", 512, 20_000)
    assert wished.tokens == 20_000
    assert not wished.measures


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_first_batch_is_part_of_the_work_and_the_others_fill_the_memory(parts, ahead, monkeypatch):  # noqa: F811
    scorer, task, encoded, ids = parts
    plain = predict(scorer, task, encoded, ids, shown=False)
    memory, sizes, real = Memory(1000, 10**9), [], prediction._begin
    longest, found = int(encoded.total_lengths.max()), {}

    def counted(scorer, task, batch, device):
        memory.tokens = batch["input_ids"].numel()
        sizes.append(len(batch["row"]))
        return real(scorer, task, batch, device)

    monkeypatch.setattr(prediction, "_begin", counted)
    monkeypatch.setitem(prediction._AHEAD, "cpu", ahead)
    monkeypatch.setattr(prediction, "open_budget", lambda *_: Budget(3 * longest, longest, memory, "tiny", found))
    for expected in ([3, len(ids) - 3], [len(ids)]):
        sizes.clear()
        again = predict(scorer, task, encoded, ids, shown=False)
        assert sizes == expected
        np.testing.assert_allclose(again.values, plain.values, atol=1e-5)
    assert memory.started == 1
    assert found["tiny"].tokens == _MOST
