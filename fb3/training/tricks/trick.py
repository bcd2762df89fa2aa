"""A trick around the training step: three hooks and its own state."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fb3.models.scorer import Scorer
from fb3.recipe.tricks import BaseTrickSettings
from fb3.targets.metrics import Score
from fb3.tasks.base import StepOutput

Backward = Callable[[], StepOutput]


@dataclass
class Step:
    """The training's position.

    scorer: the model itself, without the wrappers of several processes. batch: the current one. epoch: from 0.
    number: optimizer steps done. progress: their share of all, 0-1. score: of the last evaluation.
    """

    scorer: Scorer
    batch: Mapping[str, Tensor]
    epoch: int = 0
    number: int = 0
    progress: float = 0.0
    score: Score | None = None


class Trick:
    """Does nothing; each trick overrides the hooks that it needs. `scorer`: the model as it starts, on its device."""

    def __init__(self, settings: BaseTrickSettings, scorer: Scorer) -> None:
        self.settings = settings

    def check(self, steps: int) -> None:
        """Refuses (Fb3Error, with the mend) a run of so many optimizer steps in which the trick would do nothing."""

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        """Around forward and backward: may call `backward` again, on a perturbed model."""
        return backward()

    def after_step(self, step: Step) -> None:
        """After each optimizer step that changed the weights."""

    def eval_weights(self, step: Step) -> AbstractContextManager:
        """The weights to evaluate and to keep: swapped in, and out again at the end."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """The trick's memory from step to step: dicts and lists of tensors, numbers and texts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the memory that `state_dict` gave."""
