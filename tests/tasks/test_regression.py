from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fb3.models.scorer import ModelOutput
from fb3.recipe.task import LossKind, RegressionSettings
from fb3.targets.metrics import mcrmse
from fb3.tasks import losses
from fb3.tasks.losses import Criterion
from fb3.tasks.r_drop import RDrop
from fb3.tasks.regression import Regression
from tests.conftest import task_of


def test_rmse_is_a_root_of_a_mean_and_has_a_gradient_at_zero():
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    predicted = torch.tensor([[1.0, 2.0], [3.0, 8.0]], requires_grad=True)
    assert losses.rmse(predicted, truth).item() == pytest.approx(2.0, abs=1e-4)
    same = truth.clone().requires_grad_()
    losses.rmse(same, truth).backward()
    assert torch.isfinite(same.grad).all()


def test_scores_are_of_clipped_predictions_and_the_loss_of_plain_ones():
    task = task_of(Regression, RegressionSettings(loss="mse"), "a", "b")
    truth, predicted = np.array([[5.0, 1.0]], np.float32), np.array([[7.0, 0.0]], np.float32)
    score = task.score(truth, predicted)
    assert score.overall == mcrmse(truth, np.array([[5.0, 1.0]])) == 0
    assert score.loss == pytest.approx(2.5)
    assert task.target.clip(predicted).tolist() == [[5.0, 1.0]]
    assert score.columns == {"a": 0.0, "b": 0.0}


SCORES = arrays(np.float32, (5, 3), elements=st.floats(1, 5, width=32))


@given(truth=SCORES, predicted=SCORES)
@settings(deadline=None, max_examples=50)
def test_losses_are_their_formulas(truth, predicted):
    t, p = torch.from_numpy(truth).double(), torch.from_numpy(predicted).double()
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    error = truth - predicted
    assert losses.mcrmse(p, t).item() == pytest.approx(mcrmse(truth, predicted), abs=1e-4)
    pinball = np.where(error > 0, 0.3 * error, -0.7 * error).mean()
    assert losses.quantile(0.3)(p, t).item() == pytest.approx(pinball, abs=1e-9)
    small = np.abs(error) <= 0.25
    parabola = np.where(small, 0.5 * error**2, 0.25 * (np.abs(error) - 0.125)).mean()
    assert losses.huber(0.25)(p, t).item() == pytest.approx(parabola, abs=1e-9)
    loss = losses.pearson(p, t).item()
    assert -1e-6 <= loss <= 2 + 1e-6
    if truth.std(0).min() > 0.1 and predicted.std(0).min() > 0.1:
        wanted = np.mean([np.corrcoef(truth[:, k], predicted[:, k])[0, 1] for k in range(3)])
        assert loss == pytest.approx(1 - wanted, abs=1e-4)


@given(truth=SCORES, predicted=SCORES, shift=st.floats(-10, 10))
@settings(deadline=None, max_examples=50)
def test_rank_is_ranknet_over_the_pairs_whatever_the_level(truth, predicted, shift):
    t, p = torch.from_numpy(truth).double(), torch.from_numpy(predicted).double()
    pairs = [(i, j, k) for i in range(5) for j in range(5) for k in range(3) if truth[i, k] > truth[j, k]]
    each = [np.log1p(np.exp(-(float(predicted[i, k]) - float(predicted[j, k])))) for i, j, k in pairs]
    loss = losses.rank(p, t).item()
    assert loss == pytest.approx(np.mean(each) if pairs else 0.0, abs=1e-9)
    assert losses.rank(p + shift, t).item() == pytest.approx(loss, abs=1e-9)
    if pairs:
        assert losses.rank(t, t).item() < np.log(2) < losses.rank(-t, t).item()


def test_rank_without_pairs_is_zero_with_a_gradient_and_sums_over_blocks(monkeypatch):
    predicted = torch.rand(4, 2, requires_grad=True)
    loss = losses.rank(predicted, torch.full((4, 2), 3.0))
    loss.backward()
    assert loss == 0
    assert (predicted.grad == 0).all()
    predicted, truth = torch.rand(7, 2), torch.rand(7, 2)
    whole = losses.rank(predicted, truth)
    monkeypatch.setattr(losses, "_ROWS", 3)
    torch.testing.assert_close(losses.rank(predicted, truth), whole)


@pytest.mark.parametrize("kind", get_args(LossKind))
def test_every_loss_has_a_finite_gradient_everywhere(kind):
    criterion = Criterion(RegressionSettings(loss=kind), 2)
    truth = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    for start in (truth.clone(), torch.full((2, 2), 3.0), torch.tensor([[5.0, 1.0], [2.0, 2.0]])):
        predicted = start.requires_grad_()
        criterion(predicted, truth).backward()
        assert torch.isfinite(predicted.grad).all()


def test_terms_are_added_with_their_weights():
    truth, predicted = torch.rand(4, 3), torch.rand(4, 3)
    both = Criterion(RegressionSettings(loss="mse", terms=[{"kind": "pearson", "weight": 0.3}]), 3)
    assert both(predicted, truth).item() == pytest.approx(
        ((predicted - truth) ** 2).mean().item() + 0.3 * losses.pearson(predicted, truth).item()
    )


def test_r_drop_is_the_mean_of_two_passes_and_their_distance():
    task = task_of(Regression, RegressionSettings(loss="mse"), "a", "b")
    outputs = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])]
    turns = iter(outputs)
    truth = torch.tensor([[1.0, 1.0]])
    out = RDrop(task, alpha=0.5).loss(lambda batch: ModelOutput(next(turns), None), {"targets": truth})
    losses_of = [((o - truth) ** 2).mean().item() for o in outputs]
    assert out.loss.item() == pytest.approx(sum(losses_of) / 2 + 0.5 * 2.0)
    assert out.logs["r_drop"].item() == pytest.approx(2.0)
    assert RDrop(task, 0.5).target.columns == ("a", "b")
