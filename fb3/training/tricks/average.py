"""A second set of weights that is evaluated and kept in the place of the live one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import AveragedModel

from fb3.models import Scorer
from fb3.training.tricks.base import Step, Trick


class Average(Trick):
    """Averages the weights from a share of the run on; until then the live ones are evaluated.

    Args:
        average: does the arithmetic; the first update copies the weights.
        start: share of the run, 0-1.
        every: optimizer steps between two updates.
    """

    def __init__(self, average: AveragedModel, start: float, every: int) -> None:
        self.average, self.start, self.every = average, start, every

    def after_step(self, step: Step) -> None:
        # `progress` and `number` are those before this step.
        if step.progress >= self.start and step.number % self.every == 0:
            self.average.update_parameters(step.scorer)

    @contextmanager
    def eval_weights(self, step: Step) -> Iterator[None]:
        begun = bool(self.average.n_averaged > 0)
        if begun:
            self._swap(step.scorer)
        try:
            yield
        finally:
            if begun:
                self._swap(step.scorer)

    @torch.no_grad()
    def _swap(self, scorer: Scorer) -> None:
        for live, averaged in zip(scorer.parameters(), self.average.module.parameters(), strict=True):
            live.data, averaged.data = averaged.data, live.data
