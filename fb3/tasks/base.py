"""The interface between tasks and the loop, and code that tasks share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fb3.models.scorer import ModelOutput
from fb3.targets.metrics import Score
from fb3.targets.target import Target

Model = Callable[[Mapping[str, Tensor]], ModelOutput]


class StepOutput(NamedTuple):
    """loss: a scalar with a gradient. logs: its terms for the log, unweighted and detached."""

    loss: Tensor
    logs: dict[str, Tensor]


class Task(Protocol):
    """How a target is learned and predicted. Wrappers around a task change the loss, never the loop."""

    target: Target

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        """The training loss of a batch with `targets` (B, K) and, in the loop, `progress` (), 0-1, and `weight` (B,)
        where rows have weights.
        """

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        """The target's K outputs, (B, K), not yet clipped: folds are averaged first."""

    def fit(self, targets: Tensor) -> None:
        """Takes what the loss needs to know of the training targets (N, K), such as how frequent a class is."""

    def first_bias(self, targets: Tensor) -> Tensor:
        """The head's bias (outputs,) with which it predicts the means of the training targets (N, K)."""

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        """Distance between the outputs (B, outputs) of two passes: a scalar, 0 where they agree."""

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        """The competition's metric of clipped predictions, and the mean validation loss of the plain ones."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that the task trains beside the model, mostly none; no checkpoint holds them."""

    def to(self, device: torch.device) -> "Task":
        """Moves these parameters to a device."""

    def state_dict(self) -> dict[str, Any]:
        """The task's memory from step to step: dicts and lists of tensors, numbers and texts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class BaseTask(nn.Module):
    """Base of tasks, with the target that they learn."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def fit(self, targets: Tensor) -> None:
        """Most losses need to know nothing."""

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        return self.target.score(truth, predicted)


class Wrapper(nn.Module):
    """Delegates to the wrapped task; subclasses override `loss`."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.target = task.target

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        return self.task.loss(model, batch)

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> Tensor:
        return self.task.predict(model, batch)

    def fit(self, targets: Tensor) -> None:
        self.task.fit(targets)

    def first_bias(self, targets: Tensor) -> Tensor:
        return self.task.first_bias(targets)

    def distance(self, one: Tensor, two: Tensor) -> Tensor:
        return self.task.distance(one, two)

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        return self.task.score(truth, predicted)

    def state_dict(self) -> dict[str, Any]:
        return {"task": self.task.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])


def with_term(out: StepOutput, name: str, value: Tensor) -> dict[str, Tensor]:
    """The logs of a wrapper that adds a term to a task's loss; `task` is the loss without it."""
    return {"task": out.loss.detach(), **out.logs, name: value.detach()}


def row_weighted(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Losses (B, ...), each times its row's weight (B,) where there are any.

    Their plain mean is the batch's loss: the weights' mean is 1 over a fold, not over a batch, so that a row weighs the
    same in any company.
    """
    return losses if weight is None else losses * weight.view(-1, *[1] * (losses.ndim - 1))


class Recorder:
    """A model that keeps its outputs, for a wrapper to read."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.outputs: list[ModelOutput] = []

    def __call__(self, batch: Mapping[str, Tensor]) -> ModelOutput:
        self.outputs.append(self.model(batch))
        return self.outputs[-1]
