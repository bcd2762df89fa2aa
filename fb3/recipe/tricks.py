"""Pieces around the step."""

from typing import Annotated, Literal

from pydantic import Field

from fb3.recipe.settings import Count, Probability, Rate, Settings

# --- adversarial ---


class FgmSettings(Settings):
    """Fast gradient method on the word embeddings (Miyato et al. 2016, arXiv:1605.07725)."""

    kind: Literal["fgm"]
    """Adversarial training in one step: one more forward and backward pass."""
    epsilon: Rate = 1.0
    """L2 norm of the perturbation."""


class PgdSettings(Settings):
    """Projected gradient descent on the word embeddings (Madry et al. 2017, arXiv:1706.06083)."""

    kind: Literal["pgd"]
    """Adversarial training in several steps: as many more forward and backward passes."""
    epsilon: Rate = 1.0
    """Largest L2 norm of the perturbation."""
    alpha: Rate = 0.3
    """L2 norm of one step."""
    steps: Annotated[int, Field(ge=1, le=20)] = 3
    """Steps."""


class AwpSettings(Settings):
    """Adversarial weight perturbation (Wu et al. 2020, arXiv:2004.05884)."""

    kind: Literal["awp"]
    """The encoder's weight matrices, moved along their gradient."""
    rate: Rate = 0.1
    """Length of the move of each matrix, as a share of its norm."""
    epsilon: Rate = 0.001
    """Largest move of each single weight, as a share of its size. 0.01, as notebooks for large encoders have it, ruins
    a small one: a fold of MiniLM fell from 0.4985 to 0.5997."""
    from_epoch: Annotated[int, Field(ge=0)] = 1
    """First epoch in which it works, counted from 0."""
    from_score: float | None = None
    """It works only once the last evaluation was as good as this, too; none: whatever the score."""
    form: Literal["two_pass", "perturb_first"] = "two_pass"
    """two_pass: the gradients of the plain and the moved weights are added; perturb_first: only the latter counts."""


class NoiseSettings(Settings):
    """Noise on the word embeddings while training (after He et al. 2020, arXiv:2006.03654, section 3.4)."""

    kind: Literal["noise"]
    """Gaussian noise, scaled by the embeddings' own spread."""
    scale: Rate = 0.05
    """Standard deviation of the noise, as a share of the embeddings'."""


# --- averaging ---


class EmaSettings(Settings):
    """Exponential moving average of the weights (Polyak & Juditsky 1992), used at evaluation and kept."""

    kind: Literal["ema"]
    """An average that follows the weights."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that stays at each step; half of it is forgotten in ln 2 / (1 − decay) steps."""
    start: Probability = 0.0
    """Share of the run before the average begins; until then the weights themselves are evaluated."""


class SwaSettings(Settings):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407), used at evaluation and kept."""

    kind: Literal["swa"]
    """The plain mean of the weights at several moments; schedule.floor keeps the rate up meanwhile."""
    start: Probability = 0.6
    """Share of the run before the first moment."""
    every_steps: Count = 50
    """Optimizer steps between two moments."""


# --- stability ---


class LookaheadSettings(Settings):
    """Slow weights that follow the optimizer's fast ones (Zhang et al. 2019, arXiv:1907.08610)."""

    kind: Literal["lookahead"]
    """Every few steps the weights go back a part of the way that they have come; over any optimizer."""
    steps: Annotated[int, Field(ge=2)] = 5
    """Optimizer steps between two returns; one would only be a smaller rate."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the way that is kept."""


class PullToStartSettings(Settings):
    """Weight decay toward the pretrained weights, L2-SP (Li et al. 2018, arXiv:1802.01483)."""

    kind: Literal["pull_to_start"]
    """After each step the encoder's weights go back a little to where they started. It takes the place of
    optimizer.weight_decay."""
    strength: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Share of the way back, each step."""


class GradualUnfreezeSettings(Settings):
    """Layers join from the top down (Howard & Ruder 2018, arXiv:1801.06146)."""

    kind: Literal["gradual_unfreeze"]
    """At first pooling and head train alone."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the run after which all layers train."""


TrickSettings = Annotated[
    FgmSettings
    | PgdSettings
    | AwpSettings
    | NoiseSettings
    | EmaSettings
    | SwaSettings
    | LookaheadSettings
    | PullToStartSettings
    | GradualUnfreezeSettings,
    Field(discriminator="kind"),
]
EMBEDDING_ADVERSARIAL = {"fgm", "pgd"}
ON_ENCODER = {"fgm", "pgd", "awp", "pull_to_start", "gradual_unfreeze"}
ADVERSARIAL, AVERAGERS = {"fgm", "pgd", "awp"}, {"ema", "swa"}
