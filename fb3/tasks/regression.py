"""Regression: scores on a continuous scale, MCRMSE."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.metrics import Score, rmse_columns
from fb3.recipe.groups import RegressionTask
from fb3.tasks.base import Model, StepOutput


def rmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared error of the whole batch. (A root of each element would be an L1 loss.)"""
    return torch.sqrt(F.mse_loss(predicted, truth) + 1e-9)  # the root has no gradient at 0


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "rmse": rmse,
}


class Regression:
    """The task of FB3.

    Args:
        settings: loss and range.
        columns: the K targets, in the order of the model's outputs.
    """

    def __init__(self, settings: RegressionTask, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._criterion = LOSSES[settings.loss]
        self._range = (settings.minimum, settings.maximum)

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        scores = model(batch).scores  # (B, K)
        return StepOutput(self._criterion(scores, batch["targets"]), {})

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch).scores  # (B, K)

    def clip(self, values: np.ndarray) -> np.ndarray:
        return np.clip(values, *self._range)

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        columns = rmse_columns(truth, self.clip(predicted))
        loss = self._criterion(torch.as_tensor(predicted), torch.as_tensor(truth)).item()
        return Score(float(columns.mean()), dict(zip(self.columns, columns.tolist(), strict=True)), loss=loss)
