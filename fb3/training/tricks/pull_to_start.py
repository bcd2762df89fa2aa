"""L2-SP: weight decay toward the pretrained weights instead of zero (Li et al. 2018, arXiv:1802.01483).

Cost: next to nothing, and one more copy of the encoder.
"""

from typing import Any

import torch

from fb3.models.scorer import Scorer
from fb3.recipe.tricks import PullToStartSettings
from fb3.training.tricks.trick import Step, Trick


class L2SP(Trick):
    """weights ← weights + strength · (start − weights) after each step, in the encoder."""

    def __init__(self, settings: PullToStartSettings, scorer: Scorer) -> None:
        super().__init__(settings, scorer)
        self.start = [(p, p.detach().clone()) for p in scorer.encoder.parameters() if p.requires_grad]

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        for parameter, start in self.start:
            parameter.lerp_(start, self.settings.strength)

    def state_dict(self) -> dict[str, Any]:
        return {"start": [start for _, start in self.start]}  # the backbone's file may have changed since

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for (_, start), saved in zip(self.start, state["start"], strict=True):
            start.copy_(saved)
