"""The table of tricks around the step. Each trick is one file, with its paper and its cost on top."""

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe import Recipe
from fb3.training.tricks.averaging import EMA, SWA
from fb3.training.tricks.awp import AWP
from fb3.training.tricks.fgm import FGM
from fb3.training.tricks.lookahead import Lookahead
from fb3.training.tricks.noise import EmbeddingNoise
from fb3.training.tricks.pgd import PGD
from fb3.training.tricks.pull_to_start import L2SP
from fb3.training.tricks.trick import Trick
from fb3.training.tricks.unfreeze import GradualUnfreeze

# Outermost first: tricks that drop gradients wrap tricks that read them; averages update last after a step.
TRICKS: dict[str, type[Trick]] = {
    "gradual_unfreeze": GradualUnfreeze,
    "fgm": FGM,
    "pgd": PGD,
    "awp": AWP,
    "noise": EmbeddingNoise,
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
        steps: optimizer steps of the whole run.

    Raises:
        Fb3Error: a trick would do nothing in so many steps, or acts on the weights of a frozen encoder.
    """
    order, tricks = list(TRICKS), []
    frozen = not any(p.requires_grad for p in scorer.encoder.parameters())
    for settings in sorted(recipe.tricks, key=lambda trick: order.index(trick.kind)):
        if frozen and settings.on_encoder:
            raise Fb3Error(f"tricks: {settings.kind} acts on the encoder's weights, which are all frozen; leave it out")
        tricks.append(TRICKS[settings.kind](settings, scorer))
        tricks[-1].check(steps)
    return tricks
