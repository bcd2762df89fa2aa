"""R-Drop: two passes with two dropout masks should agree (Liang et al. 2021, arXiv:2106.14448).

Cost: two forward passes a step and one backward through both, twice the time.
"""

from collections.abc import Mapping

from torch import Tensor

from fb3.tasks.base import Model, Recorder, StepOutput, Task, Wrapper, with_term


class RDrop(Wrapper):
    """Trains by the mean of two passes' losses plus `alpha` times the distance of their outputs; predicts as `task`."""

    def __init__(self, task: Task, alpha: float) -> None:
        super().__init__(task)
        self.alpha = alpha

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        recorder = Recorder(model)
        one, two = self.task.loss(recorder, batch), self.task.loss(recorder, batch)
        apart = self.task.distance(*(output.scores for output in recorder.outputs))
        logs = {name: (value + two.logs[name]) / 2 for name, value in one.logs.items()}
        both = StepOutput((one.loss + two.loss) / 2, logs)
        return StepOutput(both.loss + self.alpha * apart, with_term(both, "r_drop", apart))
