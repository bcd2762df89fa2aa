"""FGM and EMA on a tiny real encoder."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.models import build_scorer
from fb3.recipe.groups import Ema, Fgm
from fb3.tasks import build_task
from fb3.training.tricks import EMA, FGM, Step


@pytest.fixture
def step(run, tiny):
    torch.manual_seed(0)
    scorer = build_scorer(tiny, run / "encoder", init="config")
    ids = torch.randint(5, 100, (3, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": torch.rand(3, 6) * 4 + 1}
    return Step(scorer, batch)


def backward_of(step, tiny, seen=None):
    def backward():
        if seen is not None:
            seen.append(step.scorer.encoder.get_input_embeddings().weight.detach().clone())
        out = build_task(tiny).loss(step.scorer, step.batch)
        out.loss.backward()
        return out

    return backward


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_fgm_moves_by_its_norm_along_the_gradient_and_restores_bit_for_bit(step, tiny, epsilon):
    weight = step.scorer.encoder.get_input_embeddings().weight
    before = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    seen = []
    clean = backward_of(step, tiny)
    clean()
    gradient = weight.grad.clone()
    step.scorer.zero_grad()
    FGM(Fgm(kind="fgm", epsilon=epsilon)).backward(step, backward_of(step, tiny, seen))
    assert len(seen) == 2
    move = seen[1] - seen[0]
    assert move.norm().item() == pytest.approx(epsilon, rel=1e-4)
    torch.testing.assert_close(move, epsilon * gradient / gradient.norm(), atol=1e-5, rtol=1e-3)
    for name, p in step.scorer.named_parameters():
        assert torch.equal(p, before[name]), name


def test_fgm_adds_the_gradient_at_the_moved_embeddings(step, tiny):
    moved = copy.deepcopy(step.scorer)
    FGM(Fgm(kind="fgm")).backward(step, backward_of(step, tiny))
    both = {name: p.grad.clone() for name, p in step.scorer.named_parameters() if p.grad is not None}
    other = Step(moved, step.batch)
    backward_of(other, tiny)()
    first = {name: p.grad.clone() for name, p in moved.named_parameters() if p.grad is not None}
    weight = moved.encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight.add_(weight.grad / weight.grad.norm())
    moved.zero_grad()
    backward_of(other, tiny)()
    second = {name: p.grad for name, p in moved.named_parameters() if p.grad is not None}
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, first[name] + second[name], atol=1e-5, rtol=1e-3)
    name = "head.linear.weight"
    assert not torch.allclose(second[name], first[name])


def test_fgm_restores_after_an_error(step, tiny):
    weight = step.scorer.encoder.get_input_embeddings().weight
    before = weight.detach().clone()
    backward_of(step, tiny)()
    with pytest.raises(RuntimeError), FGM(Fgm(kind="fgm")).perturbed(step):
        raise RuntimeError
    assert torch.equal(weight, before)


def test_fgm_without_a_gradient_is_an_error_not_a_silence(step):
    with pytest.raises(Fb3Error, match="no gradient"), FGM(Fgm(kind="fgm")).perturbed(step):
        pass


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_fgm_moves_nothing_along_a_gradient_without_direction(step, value):
    weight = step.scorer.encoder.get_input_embeddings().weight
    weight.grad = torch.full_like(weight, value)
    before = weight.detach().clone()
    with FGM(Fgm(kind="fgm")).perturbed(step):
        assert torch.equal(weight, before)


@given(decay=st.floats(0.01, 0.999), values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_ema_is_its_closed_form(decay, values):
    scorer = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(Ema(kind="ema", decay=decay), scorer)
    for value in values:
        torch.nn.init.constant_(scorer.weight, value)
        ema.after_step(Step(scorer, {}))
    expected = values[0]
    for value in values[1:]:
        expected = decay * expected + (1 - decay) * value
    assert ema.average.module.weight.item() == pytest.approx(expected, abs=1e-4)


def test_ema_swaps_in_and_out_bit_for_bit(step):
    ema = EMA(Ema(kind="ema", decay=0.5), step.scorer)
    ema.after_step(step)
    start = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    with torch.no_grad():
        for p in step.scorer.parameters():
            p.add_(1.0)
    ema.after_step(step)
    live = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    with ema.eval_weights(step):
        for name, p in step.scorer.named_parameters():
            torch.testing.assert_close(p, start[name] + 0.5)
    for name, p in step.scorer.named_parameters():
        assert torch.equal(p, live[name])
