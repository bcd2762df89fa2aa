"""EMA and SWA: a second set of weights, evaluated and kept in the place of the live one.

EMA: an exponential moving average (Polyak & Juditsky 1992). Cost: about 1 % of a step and one more copy of the weights.
SWA: the plain mean at several moments (Izmailov et al. 2018, arXiv:1803.05407). Cost: one more copy of the weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from fb3.models.scorer import Scorer
from fb3.recipe.tricks import EmaSettings, SwaSettings
from fb3.training.tricks.trick import Step, Trick


class Average(Trick):
    """Averages the weights from a share of the run on; until then the live ones are evaluated.

    Args:
        average: does the arithmetic; the first update copies the weights.
        start: share of the run, 0-1.
        every: optimizer steps between two updates.
    """

    def __init__(self, average: AveragedModel, start: float, every: int) -> None:
        self.average, self.start, self.every = average, start, every
        self.waited = 0  # steps since the start, a skipped one of fp16 left out

    def after_step(self, step: Step) -> None:
        if step.progress >= self.start:  # the progress before this step
            if self.waited % self.every == 0:
                self.average.update_parameters(step.scorer)
            self.waited += 1

    def moments(self, steps: int) -> int:
        """How often the weights enter the average in a run of so many steps."""
        return -(-(steps - math.ceil(self.start * steps)) // self.every)

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

    def state(self) -> dict[str, Any]:
        return {"waited": self.waited, "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.waited = state["waited"]
        self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def _swap(self, scorer: Scorer) -> None:
        for live, averaged in zip(scorer.parameters(), self.average.module.parameters(), strict=True):
            live.data, averaged.data = averaged.data, live.data


class EMA(Average):
    """average ← decay · average + (1 − decay) · weights after each step; the first step's weights start it."""

    def __init__(self, settings: EmaSettings, scorer: Scorer) -> None:
        average = AveragedModel(scorer, multi_avg_fn=get_ema_multi_avg_fn(settings.decay))
        super().__init__(average, settings.start, every=1)


class SWA(Average):
    """The mean of the weights after every n-th step from a share of the run on."""

    def __init__(self, settings: SwaSettings, scorer: Scorer) -> None:
        average = AveragedModel(scorer, multi_avg_fn=get_swa_multi_avg_fn())
        super().__init__(average, settings.start, settings.every_steps)
