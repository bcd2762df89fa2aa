"""EMA: an exponential moving average of the weights, evaluated and kept (Polyak & Juditsky 1992).

Cost: about 1 % of a step and one more copy of the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fb3.models import Scorer
from fb3.recipe.groups import Ema
from fb3.training.tricks.base import Step, Trick


class EMA(Trick):
    """average ← decay · average + (1 − decay) · weights after each step; the first step's weights start it.

    Args:
        settings: decay.
        scorer: the model on its device.
    """

    def __init__(self, settings: Ema, scorer: Scorer) -> None:
        self.average = AveragedModel(scorer, multi_avg_fn=get_ema_multi_avg_fn(settings.decay))

    def after_step(self, step: Step) -> None:
        self.average.update_parameters(step.scorer)

    @contextmanager
    def eval_weights(self, step: Step) -> Iterator[None]:
        self._swap(step.scorer)
        try:
            yield
        finally:
            self._swap(step.scorer)

    @torch.no_grad()
    def _swap(self, scorer: Scorer) -> None:
        for live, averaged in zip(scorer.parameters(), self.average.module.parameters(), strict=True):
            live.data, averaged.data = averaged.data, live.data
