"""Labels: classification (a softmax over classes) and multilabel (a sigmoid for each label). Free."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.recipe.task import ClassificationSettings, MultilabelSettings
from fb3.targets.metrics import Score
from fb3.targets.target import Target
from fb3.tasks.base import BaseTask, Model, StepOutput


class Classification(BaseTask):
    """One label of C classes a row: cross-entropy of a softmax, targets (B, C) one-hot or soft."""

    def __init__(self, settings: ClassificationSettings, target: Target) -> None:
        super().__init__(target)

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        return StepOutput(F.cross_entropy(model(batch).scores, batch["targets"]), {})

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch).scores.softmax(-1)  # (B, C)

    def first_bias(self, targets: Tensor) -> Tensor:
        counts = targets.sum(0) + 0.5  # half a row more for each class, so that no probability is 0
        return torch.log(counts / counts.sum())  # (C,)

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        """Half the sum of both KL divergences, as in R-Drop's paper."""
        a, b = one.log_softmax(-1), two.log_softmax(-1)
        return 0.5 * ((a.exp() - b.exp()) * (a - b)).sum(-1).mean()

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        loss = -(truth * np.log(self.target.clip(predicted))).sum(1).mean()
        return super().score(truth, predicted)._replace(loss=float(loss))


class Multilabel(BaseTask):
    """K labels a row, each true or not: binary cross-entropy, targets (B, K) of 0, 1 or shares between them."""

    def __init__(self, settings: MultilabelSettings, target: Target) -> None:
        super().__init__(target)

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        return StepOutput(F.binary_cross_entropy_with_logits(model(batch).scores, batch["targets"]), {})

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch).scores.sigmoid()  # (B, K)

    def first_bias(self, targets: Tensor) -> Tensor:
        return torch.logit((targets.sum(0) + 0.5) / (len(targets) + 1))  # half a row more on each side

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        """Half the sum of both KL divergences of two Bernoulli variables, for which it is this product."""
        return 0.5 * ((one.sigmoid() - two.sigmoid()) * (one - two)).mean()

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        p = self.target.clip(predicted)
        loss = -(truth * np.log(p) + (1 - truth) * np.log1p(-p)).mean()
        return super().score(truth, predicted)._replace(loss=float(loss))
