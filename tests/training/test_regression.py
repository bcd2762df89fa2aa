import numpy as np
import pytest
import torch

from fb3.metrics import mcrmse
from fb3.recipe.groups import RegressionTask
from fb3.tasks.regression import LOSSES, Regression


def test_rmse_is_a_root_of_a_mean_and_has_a_gradient_at_zero():
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    predicted = torch.tensor([[1.0, 2.0], [3.0, 8.0]], requires_grad=True)
    assert LOSSES["rmse"](predicted, truth).item() == pytest.approx(2.0, abs=1e-4)
    same = truth.clone().requires_grad_()
    LOSSES["rmse"](same, truth).backward()
    assert torch.isfinite(same.grad).all()


def test_scores_are_of_clipped_predictions_and_the_loss_of_plain_ones():
    task = Regression(RegressionTask(loss="mse"), ("a", "b"))
    truth, predicted = np.array([[5.0, 1.0]], np.float32), np.array([[7.0, 0.0]], np.float32)
    score = task.score(truth, predicted)
    assert score.overall == mcrmse(truth, np.array([[5.0, 1.0]])) == 0
    assert score.loss == pytest.approx(2.5)
    assert task.clip(predicted).tolist() == [[5.0, 1.0]]
    assert score.columns == {"a": 0.0, "b": 0.0}
