"""R-Drop: two passes with two dropout masks shall agree (Liang et al. 2021, arXiv:2106.14448).

Cost: two forward passes a step and one backward through both, twice the time.
"""

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fb3.metrics import Score
from fb3.tasks.base import Model, StepOutput, Task


class RDropped:
    """A task whose loss is the mean of two passes' losses, and `alpha` times their scores' mean squared difference.

    For scores the squared difference is, up to a factor, the KL divergence of the paper between two Gaussians.

    Args:
        task: what is trained; predicts and scores as it does alone.
        alpha: weight of the difference.
    """

    def __init__(self, task: Task, alpha: float) -> None:
        self.task, self.alpha = task, alpha
        self.columns = task.columns

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        seen = []

        def recorded(inputs: Mapping[str, Tensor]):
            seen.append(model(inputs))
            return seen[-1]

        one, two = self.task.loss(recorded, batch), self.task.loss(recorded, batch)
        apart = F.mse_loss(seen[0].scores, seen[1].scores)
        logs = {**one.logs, "r_drop": apart.detach()}
        return StepOutput((one.loss + two.loss) / 2 + self.alpha * apart, logs)

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return self.task.predict(model, batch)

    def clip(self, values: np.ndarray) -> np.ndarray:
        return self.task.clip(values)

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        return self.task.score(truth, predicted)
