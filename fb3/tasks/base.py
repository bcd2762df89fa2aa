"""What every task gives the loop and the inference."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from fb3.metrics import Score
from fb3.models import ModelOutput

Model = Callable[[Mapping[str, Tensor]], ModelOutput]


class StepOutput(NamedTuple):
    """loss: a scalar with a gradient. logs: further scalars for the log, detached."""

    loss: Tensor
    logs: dict[str, Tensor]


class Task(Protocol):
    """What a target is. Wrappers around a task change the loss, never the loop."""

    columns: tuple[str, ...]

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        """The training loss of a batch with `targets` (B, K)."""

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, K) on the submission's scale, not yet clipped: folds are averaged first."""

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Predictions brought into the range that a submission may hold."""

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        """The competition's metric of clipped predictions, and the mean validation loss of the plain ones."""
