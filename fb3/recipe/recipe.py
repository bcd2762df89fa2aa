"""`Recipe`: all groups of settings together."""

import json
import re
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, ValidationError, model_validator

from fb3.errors import Fb3Error, RuleError
from fb3.recipe.data import DataSettings, FoldsSettings
from fb3.recipe.decision import DecisionSettings
from fb3.recipe.estimator import EstimatorSettings
from fb3.recipe.hints import explain, is_rule
from fb3.recipe.metric import MetricSettings
from fb3.recipe.model import ModelSettings
from fb3.recipe.prediction import PredictSettings
from fb3.recipe.pretraining import PretrainingSettings
from fb3.recipe.pseudo import PseudoSettings
from fb3.recipe.rules import RULES
from fb3.recipe.settings import Settings
from fb3.recipe.task import RegressionSettings, TaskSettings
from fb3.recipe.training import (
    AdamWSettings,
    CosineScheduleSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainSettings,
)
from fb3.recipe.tricks import TrickSettings

DEBUG: dict[str, dict[str, int | None]] = {
    "data": {"sample": 100},
    "folds": {"count": 2, "holdout": None},
    "train": {"epochs": 2},
}


def _slug(name: str) -> str:
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError("want the end of its address on Kaggle, such as feedback-prize-effectiveness")
    return name


class Recipe(Settings):
    """Everything that decides a run. Inference reads no other recipe than the one saved in the run folder."""

    model: ModelSettings = ModelSettings()
    """Encoder, pooling, head."""
    data: DataSettings = DataSettings()
    """Columns, length, truncation."""
    folds: FoldsSettings = FoldsSettings()
    """The split."""
    train: TrainSettings = TrainSettings()
    """The loop."""
    optimizer: OptimizerSettings = AdamWSettings()
    """Rates and decay."""
    schedule: ScheduleSettings = CosineScheduleSettings()
    """The rate over time."""
    task: TaskSettings = RegressionSettings()
    """How targets are learned and scored."""
    metric: MetricSettings = "mcrmse"
    """The competition's metric, by which evaluations, soups and searches are compared. mcrmse: the mean of the columns'
    root mean squared errors; rmse: of all cells; mae: mean absolute error; pearson, spearman: correlation; qwk:
    quadratic weighted kappa of decided predictions (Cohen 1968); auc, mean_column_auc: area under the ROC curve, of
    classes one against the rest; log_loss: cross-entropy; accuracy, of several labels all of them right;
    balanced_accuracy: mean recall; macro_f1, micro_f1, f1_mean: F1 of the classes or labels, their mean, of all
    decisions together, and the mean of both; map_at_k: mean average precision of the first 3 classes, map_at_5 of 5.
    Of several columns mcrmse to log_loss take the mean, except rmse. {kind: two_level_f1, parents: 2}: of classes and
    their parents. {file: mine.py, function: name}: one's own."""
    decision: DecisionSettings | None = None
    """How averaged predictions become whole numbers, labels or a class, fitted on out-of-fold predictions. none: by the
    metric and the task: of metrics that read decisions, qwk takes cut_points; macro_f1, f1_mean and balanced_accuracy
    of classes class_scaling; F1 of several labels thresholds; the others rounding or argmax."""
    predict: PredictSettings = PredictSettings()
    """Inference."""
    tricks: tuple[TrickSettings, ...] = ()
    """Tricks around the training step, each by its kind; their order here does not matter."""
    pseudo: PseudoSettings | None = None
    """Training on the predictions of other models; none: on true labels alone."""
    pretrain: PretrainingSettings | None = None
    """Pretraining on the competition's own texts, for `fb3 pretrain` alone; none: it takes the defaults."""
    estimator: EstimatorSettings | None = None
    """A classical estimator on fixed features. none: the encoder of `model` is fine-tuned."""
    competition: Annotated[str, AfterValidator(_slug)] | None = None
    """Kaggle's name of the competition, such as feedback-prize-effectiveness, for `fb3 push-notebook` and `fb3 submit`.
    none: they ask for it."""

    @model_validator(mode="after")
    def _follows_the_rules(self) -> "Recipe":
        for rule in RULES:
            rule(self)
        return self

    @classmethod
    def from_mapping(cls, settings: Any, source: str) -> "Recipe":
        """Validates nested settings.

        Args:
            settings: the content of a YAML file.
            source: named in the errors.

        Raises:
            Fb3Error: names each wrong key, its value and the nearest known key.
            RuleError: every value has the right form, but a rule refuses them.
        """
        if not isinstance(settings, dict):
            raise Fb3Error(f"{source}: a recipe is a mapping of groups, got {type(settings).__name__}")
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            errors = error.errors()
            message = f"{source}: " + "; ".join(explain(cls, each) for each in errors)
            raise (RuleError if all(is_rule(cls, each) for each in errors) else Fb3Error)(message) from None

    def debug(self) -> "Recipe":
        """The recipe as --debug trains it: a hundred essays, two folds, two epochs."""
        settings = self.model_dump(mode="json")
        for group, values in DEBUG.items():
            settings[group] |= values
        return Recipe.from_mapping(settings, "debug mode")

    def with_prepare(self, file: str) -> "Recipe":
        """The recipe with another path of the file in data.prepare; the same one where it names none."""
        changed = {"data": self.data.model_copy(update={"prepare": file})}
        return self.model_copy(update=changed) if self.data.prepare else self

    def with_labels(self, folder: str) -> "Recipe":
        """The recipe with another path of pseudo.folder; the same one where it names none."""
        changed = self.pseudo and {"pseudo": self.pseudo.model_copy(update={"folder": folder})}
        return self.model_copy(update=changed) if changed else self

    def all_epochs(self) -> int:
        """All epochs: on pseudo-labelled essays alone, if any, and then train.epochs."""
        return self.train.epochs + (self.pseudo.first_epochs() if self.pseudo else 0)

    def is_debug(self) -> bool:
        """Whether these are --debug's settings; given by hand, they train the same run."""
        return all(getattr(getattr(self, group), key) == v for group, vs in DEBUG.items() for key, v in vs.items())

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """The recipe's JSON schema, for editors that complete YAML."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"
