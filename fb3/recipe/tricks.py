"""Tricks around the training step: each one's settings, and its rules about the rest of a recipe."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fb3.recipe.settings import Count, Probability, Rate, Settings


class BaseTrickSettings(Settings):
    """Facts and rules of any trick; a trick overrides what differs."""

    kind: str
    """The trick's name."""
    on_encoder: ClassVar[bool] = False
    """It changes gradients or weights of the encoder, so a frozen encoder leaves it nothing to do."""
    alone_in: ClassVar[str] = ""
    """An action that only one trick of a recipe may take, such as `average the weights`."""

    def drops_gradients(self) -> bool:
        """Whether the gradients of some backward passes do not count."""
        return False

    def check(self, recipe: Any) -> None:
        """Raises a ValueError, with the mend, where the trick would do nothing or work against another setting."""


# --- adversarial ---


class AdversarialSettings(BaseTrickSettings):
    """Tricks that compute a batch's loss again where its gradient makes it larger."""

    on_encoder = True
    alone_in = "perturb along the gradient"

    def check(self, recipe: Any) -> None:
        if recipe.train.accumulation > 1:
            raise ValueError(
                f"tricks: {self.kind} perturbs along the gradient of one batch, which train.accumulation > 1 mixes "
                "with others; set train.accumulation=1"
            )


class EmbeddingAdversarialSettings(AdversarialSettings):
    """Adversarial tricks on the word embeddings."""

    def check(self, recipe: Any) -> None:
        super().check(recipe)
        if recipe.model.freeze_embeddings:
            raise ValueError(
                f"tricks: {self.kind} perturbs the embeddings, which get no gradient with model.freeze_embeddings; "
                "drop one of the two"
            )


class FgmSettings(EmbeddingAdversarialSettings):
    """Fast gradient method on the word embeddings (Miyato et al. 2016, arXiv:1605.07725)."""

    kind: Literal["fgm"]
    """Adversarial training in one step: one more forward and backward pass."""
    epsilon: Rate = 1.0
    """L2 norm of the perturbation."""


class PgdSettings(EmbeddingAdversarialSettings):
    """Projected gradient descent on the word embeddings (Madry et al. 2017, arXiv:1706.06083)."""

    kind: Literal["pgd"]
    """Adversarial training in several steps: as many more forward and backward passes."""
    epsilon: Rate = 1.0
    """Largest L2 norm of the perturbation."""
    alpha: Rate = 0.3
    """L2 norm of one step."""
    steps: Annotated[int, Field(ge=1, le=20)] = 3
    """Number of steps."""

    def drops_gradients(self) -> bool:
        """Gradients of all steps but the last only show the way."""
        return True


class AwpSettings(AdversarialSettings):
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

    def drops_gradients(self) -> bool:
        """Gradients of the plain weights, with perturb_first."""
        return self.form == "perturb_first"

    def check(self, recipe: Any) -> None:
        super().check(recipe)
        if self.from_epoch >= recipe.all_epochs():
            raise ValueError(
                f"tricks: awp would begin in epoch {self.from_epoch}, counted from 0, of {recipe.all_epochs()}; "
                "give a smaller from_epoch"
            )
        if self.from_score is not None and recipe.train.evaluates_once():
            raise ValueError(
                "tricks: awp's from_score waits for an evaluation, and the only one is at the run's end; raise "
                "train.epochs or give train.evaluate_every_steps"
            )


class NoiseSettings(BaseTrickSettings):
    """Noise on the word embeddings while training (after He et al. 2020, arXiv:2006.03654, section 3.4)."""

    kind: Literal["noise"]
    """Gaussian noise, scaled by the embeddings' own spread."""
    scale: Rate = 0.05
    """Standard deviation of the noise, as a share of the embeddings'."""


# --- averaging ---


class AverageSettings(BaseTrickSettings):
    """Tricks that evaluate and keep an average of the weights in place of the weights."""

    alone_in = "average the weights"


class EmaSettings(AverageSettings):
    """Exponential moving average of the weights (Polyak & Juditsky 1992), used at evaluation and kept."""

    kind: Literal["ema"]
    """An average that follows the weights."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that stays at each step; half of it is forgotten in ln 2 / (1 − decay) steps."""
    start: Probability = 0.0
    """Share of the run before the average begins; until then the weights themselves are evaluated."""
    teach: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum distillation (Li et al. 2021, arXiv:2107.07651): share of the loss that is to the average's predictions
    in the place of the truth, 0.4 there; it rises from 0 in the first epoch. One more forward pass a step."""

    def check(self, recipe: Any) -> None:
        super().check(recipe)
        if not self.teach:
            return
        task = recipe.task
        others = {"task.r_drop": task.r_drop, "task.uda": task.uda, "task.squeeze": getattr(task, "squeeze", None)}
        others["pseudo.use=distil"] = recipe.pseudo and recipe.pseudo.use == "distil"
        if also := next((name for name, given in others.items() if given), None):
            raise ValueError(f"tricks: ema.teach and {also} both add to the loss; leave one of them out")


class SwaSettings(AverageSettings):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407), used at evaluation and kept."""

    kind: Literal["swa"]
    """The plain mean of the weights at several moments; schedule.floor keeps the rate up meanwhile."""
    start: Probability = 0.6
    """Share of the run before the first moment."""
    every_steps: Count = 50
    """Optimizer steps between two moments."""


# --- stability ---


class LookaheadSettings(BaseTrickSettings):
    """Slow weights that follow the optimizer's fast ones (Zhang et al. 2019, arXiv:1907.08610)."""

    kind: Literal["lookahead"]
    """Every few steps the weights go back a part of the way that they have come; over any optimizer."""
    steps: Annotated[int, Field(ge=2)] = 5
    """Optimizer steps between two returns; one would only be a smaller rate."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the way that is kept."""

    def check(self, recipe: Any) -> None:
        if recipe.optimizer.kind == "ranger":
            raise ValueError("tricks: optimizer.kind=ranger looks ahead itself; drop lookahead, or take radam")


class PullToStartSettings(BaseTrickSettings):
    """Weight decay toward the pretrained weights, L2-SP (Li et al. 2018, arXiv:1802.01483)."""

    kind: Literal["pull_to_start"]
    """After each step the encoder's weights go back a little to where they started. It takes the place of
    optimizer.weight_decay."""
    strength: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Share of the way back, each step."""
    on_encoder = True

    def check(self, recipe: Any) -> None:
        if recipe.optimizer.weight_decay:
            raise ValueError(
                "tricks: pull_to_start decays the weights toward their start, optimizer.weight_decay toward 0; set "
                "optimizer.weight_decay=0"
            )
        if recipe.optimizer.kind == "madgrad":
            raise ValueError("tricks: madgrad goes by its own sums and undoes pull_to_start; drop one of the two")
        if recipe.model.reinit_layers:
            raise ValueError("tricks: pull_to_start would pull model.reinit_layers to random weights; drop one")


class GradualUnfreezeSettings(BaseTrickSettings):
    """Layers join from the top down (Howard & Ruder 2018, arXiv:1801.06146)."""

    kind: Literal["gradual_unfreeze"]
    """At first pooling and head train alone."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the run after which all layers train."""
    on_encoder = True


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
