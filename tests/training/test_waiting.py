"""Nothing in a training step asks the device for a number: the CPU would wait, and the GPU then for the CPU.

On the meta device, whose tensors have shapes and no values, whatever asks for one is an error; and the attention of
DeBERTa goes the way it goes on a GPU.
"""

import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fb3.models.build import build_scorer
from fb3.recipe import load_recipe
from fb3.recipe.tricks import AwpSettings, PgdSettings
from fb3.tasks.build import build_task
from fb3.training.optimizer import build_optimizer
from fb3.training.parameter_groups import trainable
from fb3.training.tricks.awp import AWP
from fb3.training.tricks.build import build_tricks
from fb3.training.tricks.perturbation import direction
from fb3.training.tricks.pgd import PGD
from fb3.training.tricks.trick import Step

PIECES = [
    "tricks=[{kind: fgm}, {kind: ema, decay: 0.5}]",
    "tricks=[{kind: pgd, steps: 2}]",
    "tricks=[{kind: awp, from_epoch: 0}]",
    "tricks=[{kind: awp, from_epoch: 0, form: perturb_first}, {kind: swa, start: 0, every_steps: 5}]",
    "tricks=[{kind: noise}, {kind: lookahead, steps: 2}, {kind: gradual_unfreeze}]",
    "tricks=[{kind: pull_to_start}] optimizer.weight_decay=0",
    *(f"task.loss={loss}" for loss in ("mse", "rmse", "mcrmse", "pearson", "rank", "huber", "quantile")),
    "task.terms=[{kind: pearson, weight: 0.5, end_weight: 0.1}]",
    "task.weighting=uncertainty task.loss=mse",
    "task={kind: binned, focal: 2, squeeze: 0.1}",
    "task={kind: ordinal}",
    "task.r_drop={alpha: 1.0} model.dropout=0.1",
    *(f"model.pooling.kind={kind}" for kind in ("cls", "mean", "max", "mean_max", "attention", "dense")),
    *(f"model.pooling={{kind: {kind}, layers: 2}}" for kind in ("weighted_layer", "gru_layers", "hierarchical_layers")),
    "model.pooling={kind: gem}",
    "model.pooling={kind: cnn}",
    "model.pooling={kind: token_weighted}",
    "model.head={kind: multi_sample_dropout}",
    "model.mixout=0.5",
    "model.layer_drop=0.3",
    "model.dropout=0.1 model.attention_dropout=0.1",
    "optimizer.bias_correction=false",
    "optimizer.kind=radam",
    "optimizer.kind=adafactor",
]


def step_on_meta(run, overrides):
    """Two optimizer steps as the loop takes them."""
    recipe = load_recipe("tiny", overrides)
    scorer = build_scorer(recipe, run / "encoder", init="config").to("meta").train()
    ids = torch.zeros(3, 12, dtype=torch.long, device="meta")
    scores = torch.zeros(3, 6, device="meta")
    batch = {"input_ids": ids, "attention_mask": ids, "targets": scores, "progress": scores[0, 0]}
    task = build_task(recipe).to("meta")
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=True, of_task=task.parameters())
    tricks, step = build_tricks(recipe, scorer, 10), Step(scorer, batch, number=1, progress=0.5)

    def plain():
        out = task.loss(scorer, batch)
        out.loss.backward()
        return out

    for _ in range(2):
        backward = plain
        for trick in reversed(tricks):
            backward = partial(trick.backward, step, backward)
        loss = backward().loss
        assert loss.device.type == "meta"
        torch.nn.utils.clip_grad_norm_([*trainable(scorer), *task.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for trick in tricks:
            trick.after_step(step)


@pytest.fixture(autouse=True)
def fp32(monkeypatch):
    """The meta device knows no autocast, be it to turn it off."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **keywords: nullcontext())


@pytest.mark.parametrize("piece", PIECES)
def test_a_step_asks_the_device_for_no_number(run, piece):
    step_on_meta(run, re.split(r" (?=[a-z_]+\.[a-z_.]+=)", piece))


def test_the_check_would_tell(run, monkeypatch):
    monkeypatch.setattr(PGD, "_projected", lambda self, move: move if move.norm() <= 1 else move * 0.5)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        step_on_meta(run, ["tricks=[{kind: pgd, steps: 2}]"])


@given(st.integers(0, 2**31), st.floats(-6, 6), st.floats(1e-4, 10.0), st.floats(1e-4, 10.0))
def test_moves_are_those_of_numbers_bit_for_bit(seed, size, rate, epsilon):
    """As they were computed while each norm was fetched."""
    generator = torch.Generator().manual_seed(seed)
    matrix, gradient = (torch.randn(5, 7, generator=generator) * 10**size for _ in range(2))
    length = rate * float(matrix.norm())
    scale = torch.where(gradient.norm() > 0, length / gradient.norm(), 0.0)
    assert torch.equal(direction(gradient, length), gradient * scale)
    bound = epsilon * matrix.abs()
    moved = matrix + torch.minimum(torch.maximum(gradient * scale, -bound), bound)
    parameter = torch.nn.Parameter(matrix.clone())
    parameter.grad = gradient
    AWP(AwpSettings(kind="awp", rate=rate, epsilon=epsilon), None)._move(parameter)
    assert torch.equal(parameter, moved)
    norm = gradient.norm()
    projected = gradient if norm <= epsilon else gradient * (epsilon / norm)
    assert torch.equal(PGD(PgdSettings(kind="pgd", epsilon=epsilon), None)._projected(gradient), projected)


@pytest.mark.parametrize("scaled", [False, True])
def test_adamw_is_fused_or_leaves_torch_the_choice(run, tiny, scaled):
    """fused=False would make torch take one tensor after the other on a GPU."""
    scorer = build_scorer(tiny, run / "encoder", init="config")
    optimizer = build_optimizer(scorer, tiny.optimizer, scaled=scaled)
    assert {group["fused"] for group in optimizer.param_groups} == {None if scaled else True}
    assert {group["foreach"] for group in optimizer.param_groups} == {None}
