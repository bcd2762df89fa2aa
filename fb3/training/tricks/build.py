"""Tricks around the step. Each is one file, its paper and its cost on top."""

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe import Recipe
from fb3.recipe.tricks import ON_ENCODER
from fb3.training.tricks.averaging import EMA, SWA, Average
from fb3.training.tricks.awp import AWP
from fb3.training.tricks.fgm import FGM
from fb3.training.tricks.lookahead import Lookahead
from fb3.training.tricks.noise import EmbeddingNoise
from fb3.training.tricks.pgd import PGD
from fb3.training.tricks.pull_to_start import L2SP
from fb3.training.tricks.trick import Backward, Step, Trick
from fb3.training.tricks.unfreeze import GradualUnfreeze

__all__ = [
    "AWP",
    "EMA",
    "FGM",
    "L2SP",
    "PGD",
    "SWA",
    "Backward",
    "EmbeddingNoise",
    "GradualUnfreeze",
    "Lookahead",
    "Step",
    "Trick",
    "build_tricks",
]

# Outermost first: what takes gradients away goes around what looks at them, what averages comes last after a step.
_BUILD = {
    "gradual_unfreeze": GradualUnfreeze,
    "fgm": lambda settings, scorer: FGM(settings),
    "pgd": lambda settings, scorer: PGD(settings),
    "awp": lambda settings, scorer: AWP(settings),
    "noise": lambda settings, scorer: EmbeddingNoise(settings),
    "pull_to_start": L2SP,
    "lookahead": Lookahead,
    "ema": EMA,
    "swa": SWA,
}


def build_tricks(recipe: Recipe, scorer: Scorer, steps: int) -> list[Trick]:
    """The tricks of a recipe, outermost first.

    Args:
        recipe: its `tricks`, in any order.
        scorer: on its device already.
        steps: of the optimizer, in all.

    Raises:
        Fb3Error: an average that would never differ from the weights, a lookahead that would never return, or a frozen
            encoder where a trick acts on the encoder's weights.
    """
    order = list(_BUILD)
    tricks = []
    frozen = not any(p.requires_grad for p in scorer.encoder.parameters())
    for settings in sorted(recipe.tricks, key=lambda trick: order.index(trick.kind)):
        if frozen and settings.kind in ON_ENCODER:
            raise Fb3Error(f"tricks: {settings.kind} acts on the encoder's weights, which are all frozen; leave it out")
        trick = _BUILD[settings.kind](settings, scorer)
        if isinstance(trick, Average) and trick.moments(steps) < 2:
            raise Fb3Error(
                f"tricks: {settings.kind} has {trick.moments(steps)} moments in {steps} steps, so it averages nothing; "
                "let it start earlier or more often, or leave it out"
            )
        if isinstance(trick, Lookahead) and steps < trick.steps:
            raise Fb3Error(
                f"tricks: lookahead returns every {trick.steps} steps, and the run has {steps}; give fewer steps, or "
                "leave it out"
            )
        tricks.append(trick)
    return tricks
