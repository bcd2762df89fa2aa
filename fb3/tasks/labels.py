"""Labels: classification (a softmax over classes) and multilabel (a sigmoid for each label). Free."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.recipe.task import ClassWeightsSettings, LabelsSettings
from fb3.targets.metrics import Score
from fb3.targets.target import Target
from fb3.tasks.base import BaseTask, Model, StepOutput, row_weighted
from fb3.tasks.classes import soft_cross_entropy, symmetric_kl
from fb3.tasks.losses import Uncertainty


def class_weights(settings: ClassWeightsSettings, counts: Tensor) -> Tensor:
    """The weights of the A answers to each of M questions, with a mean of 1 over the counted rows: (M, A) -> (M, A).

    An answer that no row gives has the weight of one given once.
    """
    n = counts.double().clamp_min(1.0)
    if settings.kind == "effective":
        weights = (1.0 - settings.beta) / -torch.expm1(n * np.log(settings.beta))
    else:
        weights = n ** (-settings.power if settings.kind == "power" else -1.0)
    if settings.most is not None:
        weights = torch.minimum(weights, settings.most * weights.amin(-1, keepdim=True))
    return (weights * (counts.sum(-1, keepdim=True) / (counts * weights).sum(-1, keepdim=True))).float()


class _Labels(BaseTask, ABC):
    """Base of both: M questions a row, each with A answers of which one is true: M = 1 and A = C classes, or M = K
    labels and A = 2, no and yes.
    """

    def __init__(self, settings: LabelsSettings, target: Target) -> None:
        super().__init__(target)
        self._settings = settings
        learned = settings.weighting == "uncertainty"
        self._together = Uncertainty(settings.weighed(len(target.columns))) if learned else torch.mean
        self.register_buffer("_weights", None, persistent=False)  # (M, A): fitted anew where training goes on

    @abstractmethod
    def logs(self, outputs: Tensor) -> Tensor:
        """Outputs of the model to the answers' log probabilities, (B, M, A)."""

    @abstractmethod
    def answers(self, targets: Tensor) -> Tensor:
        """Truths (B, K) to the answers that are true, or their shares, (B, M, A)."""

    def fit(self, targets: Tensor) -> None:
        if self._settings.class_weights:
            self._weights = class_weights(self._settings.class_weights, self.answers(targets).sum(0))

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        settings, answers = self._settings, self.answers(batch["targets"])
        logs = self.logs(model(batch).scores)
        losses = soft_cross_entropy(logs, answers, settings.smoothing, settings.focal, settings.poly)  # (B, M)
        if self._weights is not None:
            losses = losses * (answers * self._weights).sum(-1)
        each = row_weighted(losses, batch.get("weight")).mean(0)
        learned = isinstance(self._together, Uncertainty)
        return StepOutput(
            self._together(each), dict(zip(self.target.columns, each.detach(), strict=True)) if learned else {}
        )

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        return symmetric_kl(self.logs(one), self.logs(two))

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        """The metric, and the log loss of clipped probabilities, unweighted and without smoothing."""
        logs = self.answers(torch.from_numpy(self.target.clip(predicted))).log()
        loss = -(self.answers(torch.from_numpy(truth)) * logs).sum(-1).mean()
        return super().score(truth, predicted)._replace(loss=loss.item())


class Classification(_Labels):
    """One label of C classes a row: cross-entropy of a softmax, targets (B, C) one-hot or soft."""

    def logs(self, outputs: Tensor) -> Tensor:
        return outputs.log_softmax(-1)[:, None]

    def answers(self, targets: Tensor) -> Tensor:
        return targets[:, None]

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch).scores.softmax(-1)  # (B, C)

    def first_bias(self, targets: Tensor) -> Tensor:
        counts = targets.sum(0) + 0.5  # half a row more for each class, so that no probability is 0
        return torch.log(counts / counts.sum())  # (C,)


class Multilabel(_Labels):
    """K labels a row, each true or not: binary cross-entropy, targets (B, K) of 0, 1 or shares between them."""

    def logs(self, outputs: Tensor) -> Tensor:
        return F.logsigmoid(torch.stack([-outputs, outputs], -1))

    def answers(self, targets: Tensor) -> Tensor:
        return torch.stack([1.0 - targets, targets], -1)

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch).scores.sigmoid()  # (B, K)

    def first_bias(self, targets: Tensor) -> Tensor:
        return torch.logit((targets.sum(0) + 0.5) / (len(targets) + 1))  # half a row more on each side
