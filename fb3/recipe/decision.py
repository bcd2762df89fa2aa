"""Settings of the decision: how averaged predictions become whole numbers, labels or one class."""

from typing import Annotated, Literal

from pydantic import Field

from fb3.recipe.settings import Settings, kinds


class PlainDecisionSettings(Settings):
    """A decision without settings of its own."""

    kind: Literal["none", "rounding", "argmax", "class_scaling", "thresholds"]
    """none: predictions stay as they are; rounding: the nearest whole number from the lowest truth to the highest;
    argmax: the likeliest class; class_scaling: argmax after each probability is multiplied by c / n + 1, for a class
    with n essays, where c is tuned by the metric: small classes gain; thresholds: one for each label, tuned by its F1
    on random halves of the out-of-fold predictions."""


class CutPointsSettings(Settings):
    """Cut points between the whole numbers of a target, fitted on out-of-fold predictions."""

    kind: Literal["cut_points"]
    """A number for each interval between two cut points."""
    method: Literal["quantiles", "search"] = "quantiles"
    """quantiles: as many predictions in each interval as truths have its number; search: the highest kappa, as the mean
    over random halves. Quantiles lose less on other essays, but rely on shares like those of training."""


DecisionSettings = Annotated[PlainDecisionSettings | CutPointsSettings, Field(discriminator="kind")]

METHODS: dict[str, PlainDecisionSettings | CutPointsSettings] = {
    **{kind: PlainDecisionSettings(kind=kind) for kind in kinds(PlainDecisionSettings)},
    "quantiles": CutPointsSettings(kind="cut_points", method="quantiles"),
    "search": CutPointsSettings(kind="cut_points", method="search"),
}
"""Every decision by the name that `fb3 decide --method` takes."""


def method_name(settings: DecisionSettings) -> str:
    """The name of a decision in `METHODS`."""
    return next(name for name, each in METHODS.items() if each == settings)


def methods_for(task: str) -> tuple[str, ...]:
    """The names of the decisions that suit a kind of task, none aside."""
    by_task = {"classification": ("argmax", "class_scaling"), "multilabel": ("rounding", "thresholds")}
    return by_task.get(task, ("rounding", "quantiles", "search"))
