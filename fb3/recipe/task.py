"""Settings of tasks: how targets are learned, and their losses."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.settings import Count, Probability, Rate, Settings, read_kind

LossKind = Literal["smooth_l1", "mse", "rmse", "mcrmse", "huber", "pearson", "quantile", "rank"]
# Losses that are no mean over essays: their mean over parts of a batch is not the batch's loss.
BATCH_LOSSES = {"rmse", "mcrmse", "pearson", "rank"}
COMPARISONS = {"pearson", "rank"}  # compare the essays of a batch with each other, so they want several


class LossTermSettings(Settings):
    """One more loss, added to task.loss."""

    kind: LossKind
    """The loss: any that task.loss takes."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Its factor, or its factor at the start where end_weight is given."""
    end_weight: Annotated[float, Field(ge=0)] | None = None
    """Its factor at the end of the run, to which it goes linearly; none: it stays as it is."""

    @model_validator(mode="after")
    def _counts(self) -> "LossTermSettings":
        if self.weight == self.end_weight:
            raise ValueError("end_weight does nothing where it equals weight; leave it out")
        if self.weight == 0 and self.end_weight is None:
            raise ValueError("weight 0 does nothing; leave the term out or give an end_weight")
        return self


class RDropSettings(Settings):
    """R-Drop (Liang et al. 2021, arXiv:2106.14448): two passes with two dropout masks should agree."""

    alpha: Rate = 1.0
    """Weight of the distance of the two passes: the mean squared difference of scores, or half the symmetric KL
    divergence of classes."""


class UdaSettings(Settings):
    """UDA (Xie et al. 2020, arXiv:1904.12848): essays without scores and augmented copies of them should agree."""

    file: str
    """A CSV of essays with the id and text columns of test.csv: a path within the data folder, or an absolute one. Read
    for training only."""
    weight: Rate = 1.0
    """Weight of the distance between the outputs for the copies and for the plain essays, measured as in r_drop.
    1 in the paper."""
    batch_size: Count = 8
    """Essays without scores beside each batch of train.batch_size; shared out among processes like the batch."""
    augment: AugmentSettings
    """Changes of the copies: the settings of data.augment, given anew."""

    @model_validator(mode="after")
    def _without_targets(self) -> "UdaSettings":
        if self.augment.mix:
            raise ValueError("augment.mix mixes targets, and these essays have none; leave it out")
        return self


class BaseTaskSettings(Settings):
    """Settings of every task."""

    kind: str
    """The kind of task."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """How losses are added: fixed: columns alike, terms by their weights; uncertainty: by learned weights (Kendall et
    al. 2018, arXiv:1705.07115), one for each of loss and terms or, without terms, for each column. They train at
    optimizer.head_rate."""
    r_drop: RDropSettings | None = None
    """Two passes a step that should agree: twice the time; none: off. Wants some dropout."""
    uda: UdaSettings | None = None
    """Consistency on essays without scores: more than twice the time; none: off."""

    def losses(self) -> list[str]:
        """Names of the losses, where there is a choice."""
        return []

    def of_batches(self) -> list[str]:
        """The names of the losses that do not add up over parts of a batch."""
        return [kind for kind in self.losses() if kind in BATCH_LOSSES]

    def weighed(self, columns: int) -> int:
        """Number of losses that `weighting` weighs."""
        return columns

    def outputs(self, columns: int) -> int:
        """Width of the model's output for so many target columns."""
        return columns


class ScaleSettings(BaseTaskSettings):
    """Settings of the tasks whose targets are numbers on a scale."""

    minimum: float | None = 1.0
    """Lowest score; predictions are clipped to it. none: the range is open below."""
    maximum: float | None = 5.0
    """Highest score; none: the range is open above."""

    @model_validator(mode="after")
    def _ordered(self) -> "ScaleSettings":
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} must lie below maximum {self.maximum}")
        return self


class RegressionSettings(ScaleSettings):
    """Scores on a continuous scale."""

    kind: Literal["regression"] = "regression"
    """Scores on a continuous scale."""
    loss: LossKind = "smooth_l1"
    """smooth_l1: Huber with delta 1 (Girshick 2015, arXiv:1504.08083); rmse: the root of the batch's mean; mcrmse: the
    mean of each column's root, the metric itself; huber: with `delta` (Huber 1964); pearson: 1 less the mean
    correlation of the columns, an addition rather than a loss of its own; quantile: the pinball loss of `quantile`
    (Koenker & Bassett 1978); rank: RankNet on the batch's pairs (Burges et al. 2005), an addition too."""
    delta: Rate = 0.5
    """Error, in scores or, with standardise, in standard deviations, at which huber's parabola becomes a line."""
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share that the quantile loss aims at; 0.5 is the absolute error."""
    terms: tuple[LossTermSettings, ...] = ()
    """Further losses, weighted and added."""
    standardise: bool = False
    """Learn (score - location) / scale, so that one recipe trains alike on any scale, such as 0 to 100; losses are in
    these units then, predictions and the metric in scores."""
    location: tuple[float, ...] | None = None
    """With standardise: a number for each target column. none: the means in train.csv, stored in the run's recipe."""
    scale: tuple[Rate, ...] | None = None
    """The same: the standard deviations."""

    @model_validator(mode="after")
    def _losses_fit(self) -> "RegressionSettings":
        losses = self.losses()
        if len(set(losses)) < len(losses):
            raise ValueError(f"loss and terms name a loss twice: {losses}")
        for name, loss in (("delta", "huber"), ("quantile", "quantile")):  # shared by loss and terms, so beside both
            if loss not in losses and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing without a {loss} loss; leave it out")
        if not self.standardise and (self.location or self.scale):
            raise ValueError("location and scale do nothing without standardise; leave them out or set it")
        if self.weighting == "uncertainty" and any(t.weight != 1 or t.end_weight is not None for t in self.terms):
            raise ValueError("weighting: uncertainty learns the terms' weights; leave weight and end_weight out")
        return self

    def losses(self) -> list[str]:
        """Names of the losses, `loss` first."""
        return [self.loss, *(term.kind for term in self.terms)]

    def weighed(self, columns: int) -> int:
        """Number of losses, or of columns where there is one loss."""
        return len(self.losses()) if self.terms else columns


class ClassesSettings(ScaleSettings):
    """Classes at equal distances on the scale of scores."""

    step: Annotated[float, Field(ge=1e-3)] = 0.5
    """Distance of the classes, in scores: minimum, minimum + step, ..., maximum."""
    squeeze: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared logit, which keeps logits small: logit squeezing (Kannan et al. 2018,
    arXiv:1803.06373). 0: off."""

    @model_validator(mode="after")
    def _steps_fit(self) -> "ClassesSettings":
        if self.minimum is None or self.maximum is None:
            raise ValueError("classes at equal distances want a minimum and a maximum; give both, or take regression")
        steps = (self.maximum - self.minimum) / self.step
        if steps < 0.5 or not min(steps % 1.0, 1.0 - steps % 1.0) < 1e-6:  # NaN, of an infinite range, is refused too
            raise ValueError(f"step {self.step} does not divide the range from {self.minimum} to {self.maximum}")
        return self

    def classes(self) -> int:
        """How many classes there are."""
        return round((self.maximum - self.minimum) / self.step) + 1


class BinnedSettings(ClassesSettings):
    """Classes at equal distances, a softmax over them for each target; the prediction is its expectation."""

    kind: Literal["binned"]
    """Cross-entropy; a truth between two classes counts for both, by its distances."""
    smoothing: Probability = 0.0
    """Share of the label that all classes get alike (Szegedy et al. 2015, arXiv:1512.00567). 0: off."""
    focal: Annotated[float, Field(ge=0)] = 0.0
    """Exponent of the focal loss, which weighs down what is right already (Lin et al. 2017, arXiv:1708.02002). 0: off,
    plain cross-entropy; 2 in the paper."""

    def outputs(self, columns: int) -> int:
        """A logit for each class."""
        return columns * self.classes()


class OrdinalSettings(ClassesSettings):
    """Classes at equal distances, a sigmoid for each bound: is the truth above it? (Niu et al. 2016)."""

    kind: Literal["ordinal"]
    """Binary cross-entropy at each bound; the prediction is minimum + step times the sum of the probabilities."""

    def outputs(self, columns: int) -> int:
        """A logit for each class but the highest."""
        return columns * (self.classes() - 1)


class BaseWeightsSettings(Settings):
    """Weights of rare labels, from the counts n of a fold's training essays."""

    kind: str
    """The way from a count to a weight."""
    most: Annotated[float, Field(gt=1)] | None = None
    """Largest weight, as a multiple of the commonest label's; none: no limit."""


class BalancedWeightsSettings(BaseWeightsSettings):
    """All labels count alike in the sum."""

    kind: Literal["balanced"]
    """1 / n. Steep where counts are very unequal: give `most`, or take power."""


class PowerWeightsSettings(BaseWeightsSettings):
    """Between equal weights and balanced ones."""

    kind: Literal["power"]
    """1 / n^power."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The exponent; 1 would be balanced."""


class EffectiveWeightsSettings(BaseWeightsSettings):
    """By the effective number of essays (Cui et al. 2019, arXiv:1901.05555)."""

    kind: Literal["effective"]
    """(1 - beta) / (1 - beta^n): hardly grows above 1 / (1 - beta) essays."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """0 would weigh all labels alike, 1 would be balanced."""


ClassWeightsSettings = Annotated[
    BalancedWeightsSettings | PowerWeightsSettings | EffectiveWeightsSettings, Field(discriminator="kind")
]


class LabelsSettings(BaseTaskSettings):
    """Settings of the tasks whose targets are labels. The validation loss has none of them: it is the log loss."""

    class_weights: ClassWeightsSettings | None = None
    """Factors of each essay's loss, by its label, with a mean of 1 over the training essays; a batch's loss is the
    plain mean, so that no batch's mixture of labels shifts them. Of several labels each has a factor where it is true
    and one where it is not. none: off."""
    smoothing: Probability = 0.0
    """Share of the truth that all classes get alike, the right one too (Szegedy et al. 2015, arXiv:1512.00567); of
    several labels, both answers to each. 0: off."""
    focal: Annotated[float, Field(ge=0)] = 0.0
    """Exponent of the focal loss, (1 - p)^focal times the cross-entropy (Lin et al. 2017, arXiv:1708.02002). 0: off;
    2 in the paper."""
    poly: Annotated[float, Field(ge=-1)] = 0.0
    """Poly-1 loss (Leng et al. 2022, arXiv:2204.12511): adds poly times 1 - p, with focal (1 - p)^(1 + focal). 0: off;
    the paper's best are 1 to 2 for classes, -1 where rare ones matter."""
    squeeze: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared logit (Kannan et al. 2018, arXiv:1803.06373). 0: off."""


def _as_texts(classes: Any) -> Any:
    """Whole numbers as texts, which YAML reads as numbers."""
    return [str(each) if type(each) is int else each for each in classes] if isinstance(classes, list) else classes


class ClassificationSettings(LabelsSettings):
    """A label a row, one of several classes: a softmax over them, cross-entropy."""

    kind: Literal["classification"]
    """The one target column holds a label: any text, numbers included."""
    classes: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2), BeforeValidator(_as_texts)]
        | None
    ) = None
    """The labels, in the order of the outputs. none: read from train.csv, sorted, as numbers where all are, and stored
    in the run's recipe."""

    @model_validator(mode="after")
    def _distinct(self) -> "ClassificationSettings":
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must differ, got {list(self.classes)}")
        return self

    def weighed(self, columns: int) -> int:
        """One loss, of all classes together."""
        return 1

    def outputs(self, columns: int) -> int:
        """A logit for each class."""
        return len(self.classes or ())


class MultilabelSettings(LabelsSettings):
    """Labels that are true or not, each by itself: a sigmoid for each column, binary cross-entropy."""

    kind: Literal["multilabel"]
    """Each target column holds 0 or 1, or a share between them."""


_Task = RegressionSettings | BinnedSettings | OrdinalSettings | ClassificationSettings | MultilabelSettings
TaskSettings = Annotated[_Task, Field(discriminator="kind"), read_kind(_Task, "regression", {})]
