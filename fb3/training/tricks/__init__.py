"""Tricks around the step. Each is one file, its paper and its cost on top."""

from fb3.models import Scorer
from fb3.recipe import Recipe
from fb3.training.tricks.awp import AWP
from fb3.training.tricks.base import Backward, Step, Trick
from fb3.training.tricks.ema import EMA
from fb3.training.tricks.fgm import FGM
from fb3.training.tricks.noise import EmbeddingNoise
from fb3.training.tricks.pgd import PGD
from fb3.training.tricks.pull_to_start import Pull
from fb3.training.tricks.swa import SWA
from fb3.training.tricks.unfreeze import Unfreeze

__all__ = [
    "AWP",
    "EMA",
    "FGM",
    "PGD",
    "SWA",
    "Backward",
    "EmbeddingNoise",
    "Pull",
    "Step",
    "Trick",
    "Unfreeze",
    "build_tricks",
]

_PLAIN = {"fgm": FGM, "pgd": PGD, "awp": AWP, "noise": EmbeddingNoise}
_OF_SCORER = {"ema": EMA, "swa": SWA, "pull_to_start": Pull, "gradual_unfreeze": Unfreeze}


def build_tricks(recipe: Recipe, scorer: Scorer) -> list[Trick]:
    """The tricks of a recipe, outermost first; `scorer` is on its device already."""
    return [
        _OF_SCORER[settings.kind](settings, scorer) if settings.kind in _OF_SCORER else _PLAIN[settings.kind](settings)
        for settings in recipe.tricks
    ]
