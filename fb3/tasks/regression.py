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
    """The task of FB3: one output a target column, in standard deviations from the mean where targets are
    standardised.
    """

    def __init__(self, settings: RegressionSettings, target: Target) -> None:
        super().__init__(target)
        self._criterion = Criterion(settings, len(target.columns))
        self._terms = settings.losses() if settings.terms else target.columns
        units = torch.tensor([settings.location, settings.scale]) if settings.standardise else None
        self.register_buffer("_units", units, persistent=False)  # (2, K): means, then standard deviations

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        scores = model(batch).scores  # (B, K)
        parts = self._criterion.parts(scores, self._standard(batch["targets"]), batch.get("weight"))
        logs = {name: part.detach() for name, part in zip(self._terms, parts, strict=True)} if len(parts) > 1 else {}
        return StepOutput(self._criterion.together(parts, batch.get("progress", 1.0)), logs)

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        scores = model(batch).scores  # (B, K)
        if self._units is None:
            return scores
        location, scale = self._units.to(scores.device)
        return location + scale * scores

    def first_bias(self, targets: Tensor) -> Tensor:
        return self._standard(targets).mean(0)  # (K,)

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        """The mean squared difference: up to a factor the KL divergence of two Gaussians."""
        return F.mse_loss(one, two)

    @torch.no_grad()
    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        pair = (self._standard(torch.as_tensor(values)) for values in (predicted, truth))
        return super().score(truth, predicted)._replace(loss=self._criterion(*pair).item())

    def _standard(self, targets: Tensor) -> Tensor:
        """Targets (N, K) in the units of the outputs."""
        if self._units is None:
            return targets
        location, scale = self._units.to(targets.device)
        return (targets - location) / scale
