"""Regression: scores on a continuous scale."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.recipe.task import RegressionSettings
from fb3.targets.metrics import Score
from fb3.targets.target import Target
from fb3.tasks.base import BaseTask, Model, StepOutput
from fb3.tasks.losses import Criterion


class Regression(BaseTask):
    """The task of FB3: one output a target column."""

    def __init__(self, settings: RegressionSettings, target: Target) -> None:
        super().__init__(target)
        self._criterion = Criterion(settings, len(target.columns))
        self._terms = settings.losses() if settings.terms else target.columns

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        scores = model(batch).scores  # (B, K)
        parts = self._criterion.parts(scores, batch["targets"])
        logs = {name: part.detach() for name, part in zip(self._terms, parts, strict=True)} if len(parts) > 1 else {}
        return StepOutput(self._criterion.together(parts, batch.get("progress", 1.0)), logs)

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch).scores  # (B, K)

    def first_bias(self, targets: Tensor) -> Tensor:
        return targets.mean(0)  # (K,)

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        """The mean squared difference: up to a factor the KL divergence of two Gaussians."""
        return F.mse_loss(one, two)

    @torch.no_grad()
    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        loss = self._criterion(torch.as_tensor(predicted), torch.as_tensor(truth)).item()
        return super().score(truth, predicted)._replace(loss=loss)
