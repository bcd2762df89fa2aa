"""EMA and SWA: a second set of weights, evaluated and kept in place of the live one.

EMA: an exponential moving average (Polyak & Juditsky 1992). Cost: about 1 % of a step and one more copy of the weights.
SWA: the plain mean at several moments (Izmailov et al. 2018, arXiv:1803.05407). Cost: one more copy of the weights.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe.tricks import EmaSettings, SwaSettings
from fb3.training.tricks.trick import Step, Trick


class Average(Trick):
    """Averages the weights every so many steps from a share of the run on; until then evaluates the live ones.

    The first update copies the weights; `update`, AveragedModel's `multi_avg_fn`, makes the others.
    """

    def __init__(self, settings: EmaSettings | SwaSettings, scorer: Scorer, update: Callable, every: int = 1) -> None:
        super().__init__(settings, scorer)
        self.average, self.every = AveragedModel(scorer, multi_avg_fn=update), every
        self.waited = 0  # steps since the start, without those that fp16's scaler skipped

    def check(self, steps: int) -> None:
        if (moments := self.moments(steps)) < 2:
            what = f"tricks: {self.settings.kind} has {moments} moments in {steps} steps, so it averages nothing"
            raise Fb3Error(f"{what}; let it start earlier or more often, or leave it out")

    def after_step(self, step: Step) -> None:
        if step.progress >= self.settings.start:  # progress before this step
            if self.waited % self.every == 0:
                self.average.update_parameters(step.scorer)
            self.waited += 1

    def moments(self, steps: int) -> int:
        """Counts the updates in a run of so many steps."""
        return -(-(steps - math.ceil(self.settings.start * steps)) // self.every)

    @contextmanager
    def eval_weights(self, step: Step) -> Iterator[None]:
        self._swap(step.scorer)
        try:
            yield
        finally:
            self._swap(step.scorer)

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited = state["waited"]
        self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def _swap(self, scorer: Scorer) -> None:
        if self.average.n_averaged > 0:
            for live, averaged in zip(scorer.parameters(), self.average.module.parameters(), strict=True):
                live.data, averaged.data = averaged.data, live.data


class EMA(Average):
    """average ← decay · average + (1 − decay) · weights after each step; the first step's weights start it."""

    def __init__(self, settings: EmaSettings, scorer: Scorer) -> None:
        super().__init__(settings, scorer, get_ema_multi_avg_fn(settings.decay))


class SWA(Average):
    """The mean of the weights after every n-th step from a share of the run on."""

    def __init__(self, settings: SwaSettings, scorer: Scorer) -> None:
        super().__init__(settings, scorer, get_swa_multi_avg_fn(), settings.every_steps)
