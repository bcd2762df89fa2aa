"""Weights of losses: over the run, and learned."""

import math
from typing import get_args

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.models.scorer import ModelOutput
from fb3.recipe import load_recipe
from fb3.recipe.settings import kinds
from fb3.recipe.task import LossKind, RegressionSettings, TaskSettings
from fb3.recipe.training import AdamWSettings
from fb3.tasks import losses
from fb3.tasks.build import TASKS
from fb3.tasks.losses import Criterion, Uncertainty
from fb3.tasks.r_drop import RDrop
from fb3.tasks.regression import Regression
from fb3.training import fold, processes
from fb3.training import loop as loop_module
from fb3.training.optimizer import build_optimizer
from fb3.training.run import train
from tests.conftest import TINY, task_of

TERMS = [{"kind": "pearson", "weight": 0.0, "end_weight": 0.5}, {"kind": "rank", "weight": 0.2}]


def test_every_loss_and_every_task_has_a_line_in_its_table():
    assert losses.LOSSES.keys() == {*get_args(LossKind)}
    assert TASKS.keys() == kinds(TaskSettings).keys()


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.25, 0.125), (1.0, 0.5), (None, 0.5)])
def test_a_weight_goes_linearly_and_its_end_counts_without_progress(progress, weight):
    task = task_of(Regression, RegressionSettings(loss="mse", terms=TERMS), "a", "b", "c")
    predicted, truth = torch.rand(4, 3), torch.rand(4, 3)
    batch = {"targets": truth} | ({} if progress is None else {"progress": torch.tensor(progress)})
    wanted = losses.F.mse_loss(predicted, truth) + weight * losses.pearson(predicted, truth)
    wanted = (wanted + 0.2 * losses.rank(predicted, truth)).item()
    assert task.loss(lambda _: ModelOutput(predicted, None), batch).loss.item() == pytest.approx(wanted, rel=1e-5)
    if weight == 0.5:
        assert task.score(truth.numpy(), predicted.numpy()).loss == pytest.approx(wanted, rel=1e-5)


def test_batches_in_the_loop_say_how_far_the_run_is(competition, tmp_path, monkeypatch):
    seen, plain = [], loop_module.Loop.backward

    def watched(self, step, parts, syncs):
        seen.extend(batch["progress"] for batch, _ in parts)
        return plain(self, step, parts, syncs)

    monkeypatch.setattr(loop_module.Loop, "backward", watched)
    recipe = load_recipe("tiny", [*TINY, "data.sample=24", "train.batch_size=3", "train.accumulation=2"])
    train(recipe, competition, tmp_path / "run", folds=[0])
    assert all(progress.dtype == torch.float32 and progress.shape == () for progress in seen)
    assert [progress.item() for progress in seen] == [0.0, 0.0, 0.5, 0.5]


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(-3, 3)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_the_learned_sum_and_its_gradient_are_their_formulas(pairs):
    values, at = (torch.tensor(each) for each in zip(*pairs, strict=True))
    weigh = Uncertainty(len(pairs))
    with torch.no_grad():
        weigh.log_variances.copy_(at)
    values.requires_grad_()
    total = weigh(values)
    total.backward()
    assert total.item() == pytest.approx(sum(math.exp(-s) * loss + s for loss, s in pairs), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(weigh.log_variances.grad, 1 - torch.exp(-at) * values.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values.grad, torch.exp(-at))


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=4))
@settings(deadline=None, max_examples=10)
def test_at_rest_a_log_variance_is_the_log_of_its_loss(values):
    weigh = Uncertainty(len(values))
    optimizer = torch.optim.Adam(weigh.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weigh(torch.tensor(values)).backward()
        optimizer.step()
    torch.testing.assert_close(weigh.log_variances.detach(), torch.tensor(values).log(), atol=0.02, rtol=0)


def test_one_loss_is_weighed_by_column_and_terms_by_loss():
    predicted, truth = torch.rand(4, 3), torch.rand(4, 3)
    columns = Criterion(RegressionSettings(loss="mse", weighting="uncertainty"), 3)
    (s,) = columns.parameters()
    with torch.no_grad():
        s.copy_(torch.tensor([1.0, 0.0, -1.0]))
    wanted = (torch.exp(-s) * ((predicted - truth) ** 2).mean(0) + s).sum()
    torch.testing.assert_close(columns(predicted, truth), wanted)
    terms = Criterion(RegressionSettings(loss="mse", terms=[{"kind": "rank"}], weighting="uncertainty"), 3)
    (s,) = terms.parameters()
    assert s.shape == (2,)
    wanted = losses.F.mse_loss(predicted, truth) + losses.rank(predicted, truth)
    torch.testing.assert_close(terms(predicted, truth), wanted)


def test_the_optimizer_has_a_group_of_the_task_through_its_wrappers(run, tiny):
    task = RDrop(task_of(Regression, RegressionSettings(weighting="uncertainty"), "a", "b"), 1.0)
    scorer = build_scorer(tiny, run / "encoder", init="config")
    optimizer = build_optimizer(scorer, AdamWSettings(head_rate=1e-3), scaled=False, of_task=task.parameters())
    (group,) = [group for group in optimizer.param_groups if group["name"] == "task"]
    assert (group["lr"], group["weight_decay"], [p.shape for p in group["params"]]) == (1e-3, 0.0, [(2,)])
    assert "task" not in {group["name"] for group in build_optimizer(scorer, AdamWSettings(), False).param_groups}


def test_each_fold_learns_weights_of_its_own_clipped_with_the_others(competition, tmp_path, monkeypatch):
    made, plain, clipped = [], fold.build_task, set()
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda given, norm: clipped.update(map(id, given)) or clip(given, norm)
    )
    monkeypatch.setattr(fold, "build_task", lambda recipe: made.append(plain(recipe)) or made[-1])
    recipe = load_recipe("tiny", [*TINY, "data.sample=24", "task.weighting=uncertainty", "optimizer.clip=1.0"])
    train(recipe, competition, tmp_path / "run")
    first, second = (next(iter(task.parameters())) for task in made)
    assert len(made) == 2
    for s in (first, second):
        assert s.shape == (6,)
        assert (s != 0).all(), "trained"
        assert s.grad is None, "zeroed with the others"
        assert id(s) in clipped
    assert not torch.equal(first, second)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    class Two(Accelerator):
        num_processes = 2

    monkeypatch.setattr(processes, "Accelerator", Two)
    with pytest.raises(Fb3Error, match="use one process, or take fixed"):
        processes.open_accelerator(load_recipe("tiny", [*TINY, "task.weighting=uncertainty"]), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.terms=[{kind: rank, end_weight: -1}]"], "greater than or equal to 0"),
        (["task.terms=[{kind: rank}]", "train.accumulation=2"], "does not add up"),
        (["task.terms=[{kind: rank, end_weight: 0.5}]", "task.weighting=uncertainty"], "learns the terms' weights"),
        (["task.weighting=uncertainty", "tricks=[{kind: pgd}]"], "pgd drops the gradients"),
        (["task.weighting=uncertainty", "tricks=[{kind: awp, from_epoch: 0, form: perturb_first}]"], "awp drops"),
    ],
)
def test_weights_that_would_do_harm_are_refused(overrides, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", overrides)


def test_weights_that_do_something_are_taken():
    load_recipe("tiny", ["task.terms=[{kind: rank, weight: 0, end_weight: 0.5}]"])
    load_recipe("tiny", ["task.weighting=uncertainty", "tricks=[{kind: awp, from_epoch: 0}]"])
    load_recipe("tiny", ["data.target_columns=[syntax]", "task.terms=[{kind: rank}]", "task.weighting=uncertainty"])
