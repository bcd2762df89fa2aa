"""Regression: scores on a continuous scale, MCRMSE."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fb3.metrics import Score, rmse_columns
from fb3.recipe.groups import RegressionTask
from fb3.tasks.base import Model, StepOutput
from fb3.tasks.losses import build_criterion


class Regression:
    """The task of FB3.

    Args:
        settings: loss and range.
        columns: the K targets, in the order of the model's outputs.
    """

    def __init__(self, settings: RegressionTask, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._criterion = build_criterion(settings)
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
