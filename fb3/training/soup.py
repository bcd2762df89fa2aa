"""Soups: the weights of a fold's best evaluations averaged (Wortsman et al. 2022, arXiv:2203.05482).

Cost: a copy of the weights in main memory for each ingredient, and a few more evaluations at the end.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fb3.models.scorer import Scorer
from fb3.recipe.training import SoupSettings
from fb3.runs.checkpoint import weights_of
from fb3.targets.metrics import Score

Weights = dict[str, Tensor]


class Soup:
    """Keeps the best evaluations' weights and tries their averages."""

    def __init__(self, settings: SoupSettings) -> None:
        self.settings = settings
        self.ingredients: list[tuple[Score, Weights]] = []  # best first

    def add(self, score: Score, scorer: Scorer) -> None:
        """Offers the weights of an evaluation."""
        place = next((i for i, (other, _) in enumerate(self.ingredients) if score.better_than(other)), None)
        place = len(self.ingredients) if place is None else place
        if place < self.settings.top and score.better_than(None):
            self.ingredients.insert(place, (score, {n: t.cpu().clone() for n, t in weights_of(scorer).items()}))
            del self.ingredients[self.settings.top :]

    def state_dict(self) -> list[Any]:
        """The ingredients, best first."""
        return [[score._asdict(), weights] for score, weights in self.ingredients]

    def load_state_dict(self, state: list[Any]) -> None:
        """Restores what `state_dict` returned."""
        self.ingredients = [(Score(**score), weights) for score, weights in state]

    def try_averages(self, scorer: Scorer, evaluate: Callable[[], Score]) -> None:
        """Puts averages into the scorer, one after the other, and has each evaluated.

        uniform averages all ingredients at once. greedy adds one after the other, best first, and leaves out each that
        does not better the score.
        """
        if len(self.ingredients) < 2:
            return
        if self.settings.kind == "uniform":
            _average_into(scorer, [weights for _, weights in self.ingredients])
            evaluate()
            return
        best, chosen = self.ingredients[0][0], [self.ingredients[0][1]]
        for _, weights in self.ingredients[1:]:
            _average_into(scorer, [*chosen, weights])
            score = evaluate()
            if score.better_than(best):
                best, chosen = score, [*chosen, weights]


@torch.no_grad()
def _average_into(scorer: Scorer, chosen: list[Weights]) -> None:
    for name, tensor in weights_of(scorer).items():
        tensor.copy_(torch.stack([weights[name] for weights in chosen]).mean(0))
