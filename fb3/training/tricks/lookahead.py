"""Lookahead: slow weights that follow the optimizer's fast ones (Zhang et al. 2019, arXiv:1907.08610).

Cost: next to nothing, and one more copy of the trained weights.
"""

from typing import Any

import torch

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe.tricks import LookaheadSettings
from fb3.training.tricks.trick import Step, Trick


class Lookahead(Trick):
    """slow ← slow + alpha · (fast − slow), fast ← slow after every n-th step; the optimizer's moments stay.

    Between two returns the fast weights are evaluated.
    """

    def __init__(self, settings: LookaheadSettings, scorer: Scorer) -> None:
        super().__init__(settings, scorer)
        self.slow = [(p, p.detach().clone()) for p in scorer.parameters() if p.requires_grad]
        self.done = 0  # optimizer steps, without those that fp16's scaler skipped

    def check(self, steps: int) -> None:
        if steps < self.settings.steps:
            raise Fb3Error(
                f"tricks: lookahead returns every {self.settings.steps} steps, and the run has {steps}; give fewer "
                "steps, or leave it out"
            )

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.done += 1
        if self.done % self.settings.steps == 0:
            for fast, slow in self.slow:
                slow.lerp_(fast, self.settings.alpha)
                fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "slow": [slow for _, slow in self.slow]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        for (_, slow), saved in zip(self.slow, state["slow"], strict=True):
            slow.copy_(saved)
