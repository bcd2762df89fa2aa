"""Logit squeezing: logits shall stay small (Kannan et al. 2018, arXiv:1803.06373). Free."""

from collections.abc import Mapping

from torch import Tensor

from fb3.tasks.base import Model, Recorder, StepOutput, Task, Wrapper, with_term


class Squeezed(Wrapper):
    """A task whose loss holds `weight` times the mean squared logit, too.

    Args:
        task: what is trained; its model's outputs are logits.
        weight: of the mean squared logit.
    """

    def __init__(self, task: Task, weight: float) -> None:
        super().__init__(task)
        self.weight = weight

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        recorder = Recorder(model)
        out = self.task.loss(recorder, batch)
        size = recorder.outputs[-1].scores.pow(2).mean()
        return StepOutput(out.loss + self.weight * size, with_term(out, "squeeze", size))
