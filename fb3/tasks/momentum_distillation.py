"""Momentum distillation: the weights' moving average teaches the weights (Li et al. 2021, arXiv:2107.07651).

Cost: one more forward pass a step, without a gradient.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fb3.models.scorer import ModelOutput
from fb3.tasks.base import Model, StepOutput, Task, Wrapper, with_term

Teacher = Callable[[Mapping[str, Tensor]], ModelOutput | None]


class MomentumDistillation(Wrapper):
    """Mixes the loss to the truth with the loss to a teacher's predictions, which are soft labels of classes.

    Args:
        task: gives both losses.
        teacher: predicts a batch, or None as long as it cannot; no gradient reaches it.
        weight: the teacher's share of the loss, 0-1.
        ramp: share of the run in which the teacher's share rises from 0: an average of the first steps knows little.
    """

    def __init__(self, task: Task, teacher: Teacher, weight: float, ramp: float) -> None:
        super().__init__(task)
        self._teacher, self.weight, self.ramp = teacher, weight, ramp

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        output = model(batch)
        true = self.task.loss(lambda _: output, batch)
        with torch.no_grad():
            taught = self._teacher(batch)
            if taught is None:
                return true
            targets = self.task.predict(lambda _: taught, batch)
        other = self.task.loss(lambda _: output, {**batch, "targets": targets})
        share = self.weight * (batch["progress"] / self.ramp).clamp(max=1.0)
        return StepOutput((1 - share) * true.loss + share * other.loss, with_term(true, "momentum", other.loss))
