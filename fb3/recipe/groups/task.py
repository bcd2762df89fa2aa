"""What a target is, and its loss."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fb3.recipe.groups.base import Group, Rate

LossKind = Literal["smooth_l1", "mse", "rmse", "mcrmse", "huber", "pearson", "quantile"]
BATCH_LOSSES = {"rmse", "mcrmse", "pearson"}  # not a mean over essays: those of parts do not add up


class LossTerm(Group):
    """One more loss, added to task.loss."""

    kind: LossKind
    """As in task.loss."""
    weight: Rate = 1.0
    """Its factor."""


class RDrop(Group):
    """R-Drop (Liang et al. 2021, arXiv:2106.14448): two passes with two dropout masks shall agree."""

    alpha: Rate = 1.0
    """Weight of the mean squared difference of the two scores."""


class RegressionTask(Group):
    """Scores on a continuous scale."""

    kind: Literal["regression"] = "regression"
    """What a target is."""
    loss: LossKind = "smooth_l1"
    """smooth_l1: Huber with delta 1 (Girshick 2015, arXiv:1504.08083); rmse: the root of the batch's mean; mcrmse: the
    mean of each column's root, the metric itself; huber: with `delta` (Huber 1964); pearson: 1 less the mean
    correlation of the columns, an addition rather than a loss of its own; quantile: the pinball loss of `quantile`
    (Koenker & Bassett 1978)."""
    delta: Rate = 0.5
    """Of huber: where the parabola becomes a line, in scores."""
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the quantile loss; 0.5 is the absolute error."""
    terms: tuple[LossTerm, ...] = ()
    """Further losses, weighted and added."""
    r_drop: RDrop | None = None
    """Two passes a step that shall agree: twice the time; none: off. Wants some dropout."""
    minimum: float = 1.0
    """Lowest score; predictions are clipped to it."""
    maximum: float = 5.0
    """Highest score."""

    @model_validator(mode="after")
    def _ordered(self) -> "RegressionTask":
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} must lie below maximum {self.maximum}")
        kinds = self.kinds()
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"loss and terms name a loss twice: {kinds}")
        if self.delta != 0.5 and "huber" not in kinds:
            raise ValueError("delta does nothing without a huber loss; leave it out")
        if self.quantile != 0.5 and "quantile" not in kinds:
            raise ValueError("quantile does nothing without a quantile loss; leave it out")
        return self

    def kinds(self) -> list[str]:
        """The losses' names."""
        return [self.loss, *(term.kind for term in self.terms)]
