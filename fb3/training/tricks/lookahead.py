"""Lookahead: slow weights that follow the optimizer's fast ones (Zhang et al. 2019, arXiv:1907.08610).

Cost: next to nothing, and one more copy of the trained weights.
"""

from typing import Any

import torch

from fb3.models.scorer import Scorer
from fb3.recipe.tricks import LookaheadSettings
from fb3.training.tricks.trick import Step, Trick


class Lookahead(Trick):
    """slow ← slow + alpha · (fast − slow), fast ← slow after every n-th step; the optimizer's moments stay.

    Between two returns it is the fast weights that are evaluated.

    Args:
        settings: steps and alpha.
        scorer: the model as it starts, on its device.
    """

    def __init__(self, settings: LookaheadSettings, scorer: Scorer) -> None:
        self.steps, self.alpha = settings.steps, settings.alpha
        self.slow = [(p, p.detach().clone()) for p in scorer.parameters() if p.requires_grad]
        self.done = 0  # a skipped step of fp16 left out

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.done += 1
        if self.done % self.steps == 0:
            for fast, slow in self.slow:
                slow.lerp_(fast, self.alpha)
                fast.copy_(slow)

    def state(self) -> dict[str, Any]:
        return {"done": self.done, "slow": [slow for _, slow in self.slow]}

    def load(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        for (_, slow), saved in zip(self.slow, state["slow"], strict=True):
            slow.copy_(saved)
