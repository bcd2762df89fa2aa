"""Tricks around the step. Each is one file, its paper and its cost on top."""

from fb3.models import Scorer
from fb3.recipe import Recipe
from fb3.training.tricks.base import Backward, Step, Trick
from fb3.training.tricks.ema import EMA
from fb3.training.tricks.fgm import FGM

__all__ = ["EMA", "FGM", "Backward", "Step", "Trick", "build_tricks"]

_BUILD = {"fgm": lambda settings, scorer: FGM(settings), "ema": EMA}


def build_tricks(recipe: Recipe, scorer: Scorer) -> list[Trick]:
    """The tricks of a recipe, outermost first; `scorer` is on its device already."""
    return [_BUILD[settings.kind](settings, scorer) for settings in recipe.tricks]
