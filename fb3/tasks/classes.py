"""Classes at equal distances on the scale of scores: binned (a softmax) and ordinal (a sigmoid for each bound).

Both predict the expectation, a score between the classes. Free.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.recipe.task import BinnedSettings, OrdinalSettings
from fb3.targets.target import Target
from fb3.tasks.base import BaseTask, Model, Recorder, StepOutput, Task, Wrapper, row_weighted, with_term
from fb3.tasks.losses import Uncertainty

_SURE = 1e-6  # the focal weight has no gradient at a probability of 1


def soft_cross_entropy(logs: Tensor, labels: Tensor, smoothing: float, focal: float, poly: float = 0.0) -> Tensor:
    """Cross-entropy of log probabilities against labels that sum to 1: (..., C), (..., C) -> (...).

    Smoothing gives a share of the labels to all classes alike; the focal loss weighs each class by (1 - p)^focal; the
    poly loss adds poly times 1 - p to -log p.
    """
    labels = (1.0 - smoothing) * labels + smoothing / labels.shape[-1]
    wrong = (-torch.expm1(logs)).clamp_min(_SURE) if focal or poly else None  # 1 - p
    if focal:
        labels = labels * wrong**focal
    return -(labels * (logs - poly * wrong if poly else logs)).sum(-1)


def symmetric_kl(one: Tensor, two: Tensor) -> Tensor:
    """Mean of half the sum of both KL divergences, as in R-Drop's paper, of log probabilities (..., C)."""
    return 0.5 * ((one.exp() - two.exp()) * (one - two)).sum(-1).mean()


class _Classes(BaseTask, ABC):
    """Base of both. K target columns, in the order of the model's outputs; C classes; L logits a target."""

    def __init__(self, settings: BinnedSettings | OrdinalSettings, target: Target) -> None:
        super().__init__(target)
        self._lowest, self._step, self._top = settings.minimum, settings.step, settings.classes() - 1
        learned = settings.weighting == "uncertainty"
        self._together = Uncertainty(settings.weighed(len(target.columns))) if learned else torch.mean

    @abstractmethod
    def labels(self, targets: Tensor) -> Tensor:
        """Truths (N, K) to the probabilities (N, K, L) that the logits should give."""

    @abstractmethod
    def column_losses(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits and labels, (B, K, L) both, and rows' weights (B,) to the mean loss of each column, (K,)."""

    @abstractmethod
    def expected(self, logits: Tensor) -> Tensor:
        """Logits (B, K, L) to the expected class (B, K), 0 to C - 1."""

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        logits = self._by_column(model(batch).scores)
        losses = self.column_losses(logits, self.labels(batch["targets"]), batch.get("weight"))
        logs = (
            dict(zip(self.target.columns, losses.detach(), strict=True))
            if isinstance(self._together, Uncertainty)
            else {}
        )
        return StepOutput(self._together(losses), logs)

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return self._lowest + self._step * self.expected(self._by_column(model(batch).scores))  # (B, K)

    def _position(self, targets: Tensor) -> Tensor:
        """Scores as numbers of classes, 0 to C - 1, fractions in between."""
        return ((targets - self._lowest) / self._step).clamp(0, self._top)

    def _by_column(self, outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (len(self.target.columns), -1))  # (B, K * L) -> (B, K, L)


class Binned(_Classes):
    """A softmax over the C classes of each target, cross-entropy with soft labels."""

    def __init__(self, settings: BinnedSettings, target: Target) -> None:
        super().__init__(settings, target)
        self._smoothing, self._focal = settings.smoothing, settings.focal

    def labels(self, targets: Tensor) -> Tensor:
        """A truth between two classes is split between them, so that its expectation is the truth."""
        numbers = torch.arange(self._top + 1, device=targets.device)
        return (1.0 - (self._position(targets)[..., None] - numbers).abs()).clamp_min(0.0)  # (N, K, C)

    def column_losses(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        losses = soft_cross_entropy(logits.log_softmax(-1), labels, self._smoothing, self._focal)
        return row_weighted(losses, weight).mean(0)

    def expected(self, logits: Tensor) -> Tensor:
        return (logits.softmax(-1) * torch.arange(self._top + 1, device=logits.device)).sum(-1)

    def first_bias(self, targets: Tensor) -> Tensor:
        counts = self.labels(targets).sum(0) + 0.5  # add half an essay to each class, so that no probability is 0
        return torch.log(counts / counts.sum(-1, keepdim=True)).flatten()  # (K * C,)

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        return symmetric_kl(self._by_column(one).log_softmax(-1), self._by_column(two).log_softmax(-1))


class Ordinal(_Classes):
    """A sigmoid for each of the C - 1 bounds, whether the truth lies above it (Niu et al. 2016)."""

    def labels(self, targets: Tensor) -> Tensor:
        """P(truth > class) by the soft labels of `Binned`: the sum is the truth as a number of classes."""
        numbers = torch.arange(self._top, device=targets.device)
        return (self._position(targets)[..., None] - numbers).clamp(0.0, 1.0)  # (N, K, C - 1)

    def column_losses(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return row_weighted(losses, weight).mean((0, 2))

    def expected(self, logits: Tensor) -> Tensor:
        return logits.sigmoid().sum(-1)

    def first_bias(self, targets: Tensor) -> Tensor:
        share = (self.labels(targets).sum(0) + 0.5) / (len(targets) + 1)  # half an essay more on each side
        return torch.logit(share).flatten()  # (K * (C - 1),)

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        """Half the sum of both KL divergences of two Bernoulli variables, for which it is this product."""
        return 0.5 * ((one.sigmoid() - two.sigmoid()) * (one - two)).mean()


class LogitSqueezing(Wrapper):
    """Adds `weight` times the mean squared logit to the loss of a task whose model gives logits."""

    def __init__(self, task: Task, weight: float) -> None:
        super().__init__(task)
        self.weight = weight

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        recorder = Recorder(model)
        out = self.task.loss(recorder, batch)
        size = recorder.outputs[-1].scores.pow(2).mean()
        return StepOutput(out.loss + self.weight * size, with_term(out, "squeeze", size))
