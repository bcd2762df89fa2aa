"""Distillation: the loss to a teacher's prediction beside the true one (Hinton et al. 2015, arXiv:1503.02531).

Cost: none but a second loss of the same outputs.
"""

from collections.abc import Mapping

from torch import Tensor

from fb3.tasks.base import Model, StepOutput, Task, Wrapper, with_term


class Distillation(Wrapper):
    """Adds `weight` times the task's own loss against the teacher's predictions, which are soft labels of classes.

    In training, `targets` are (B, 2 K): the truths, and then the teacher's predictions.
    """

    def __init__(self, task: Task, weight: float) -> None:
        super().__init__(task)
        self.weight = weight

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        output = model(batch)
        true, taught = (
            self.task.loss(lambda _: output, {**batch, "targets": targets})
            for targets in batch["targets"].chunk(2, dim=-1)
        )
        return StepOutput(true.loss + self.weight * taught.loss, with_term(true, "distil", taught.loss))
