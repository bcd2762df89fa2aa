"""What a trick around the step may do: three hooks and its own state."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fb3.models.scorer import Scorer
from fb3.targets.metrics import Score
from fb3.tasks.base import StepOutput

Backward = Callable[[], StepOutput]


@dataclass
class Step:
    """Where the training stands.

    scorer: the model itself, without the wrappers of several processes. batch: the one at hand. epoch: from 0.
    number: optimizer steps done. progress: their share of all, 0-1. score: of the last evaluation.
    """

    scorer: Scorer
    batch: Mapping[str, Tensor]
    epoch: int = 0
    number: int = 0
    progress: float = 0.0
    score: Score | None = None


class Trick:
    """Does nothing; each trick overrides what it needs."""

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        """Around forward and backward: may call `backward` again, on a perturbed model."""
        return backward()

    def after_step(self, step: Step) -> None:
        """After each optimizer step that changed the weights."""

    def eval_weights(self, step: Step) -> AbstractContextManager:
        """The weights to evaluate and to keep: swapped in, and out again at the end."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """What the trick remembers from step to step: dicts and lists of tensors, numbers and texts."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
