"""`Recipe`: the groups together, and the rules that span them."""

import json
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from fb3.errors import Fb3Error, RuleError
from fb3.recipe.data import DataSettings, FoldsSettings
from fb3.recipe.hints import explain
from fb3.recipe.model import ModelSettings
from fb3.recipe.prediction import PredictSettings
from fb3.recipe.settings import Settings
from fb3.recipe.task import COMPARISONS, RegressionSettings, TaskSettings
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


class Recipe(Settings):
    """Everything that decides a run. The one saved in the run folder is the only truth at inference."""

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
    """What a target is."""
    predict: PredictSettings = PredictSettings()
    """Inference."""
    tricks: tuple[TrickSettings, ...] = ()
    """Pieces around the step, each by its kind; their order here does not matter."""

    @model_validator(mode="after")
    def _tricks_fit(self) -> "Recipe":
        kinds = [trick.kind for trick in self.tricks]
        for kind in set(kinds):
            if kinds.count(kind) > 1:
                raise ValueError(f"tricks: {kind} stands {kinds.count(kind)} times; give it once")
        for trick in self.tricks:
            rivals = [other.kind for other in self.tricks if other.alone_in == trick.alone_in]
            if trick.alone_in and len(rivals) > 1:
                raise ValueError(f"tricks: {rivals} both {trick.alone_in}; give one")
        for trick in self.tricks:
            trick.check(self)
        return self

    @model_validator(mode="after")
    def _target_tokens_are_there(self) -> "Recipe":
        if self.model.pooling.kind == "target_tokens" and self.data.text.prompt != "tokens":
            raise ValueError("model.pooling.kind=target_tokens reads the targets' tokens; set data.text.prompt=tokens")
        if self.data.text.template and self.data.id_column in self.data.text.columns():
            raise ValueError("data.text.template names the id column; an id says nothing about an essay")
        return self

    @model_validator(mode="after")
    def _essays_are_mixed(self) -> "Recipe":
        if self.data.augment and self.data.augment.mix and self.train.batch_size == 1:
            raise ValueError(
                "data.augment.mix joins essays of a batch, and train.batch_size=1 has one; raise it or leave mix out"
            )
        return self

    @model_validator(mode="after")
    def _statistics_are_of_whole_essays(self) -> "Recipe":
        if self.data.text.statistics and self.data.augment and self.data.augment.mix:
            raise ValueError("data.text.statistics are those of whole essays; leave them or data.augment.mix out")
        return self

    @model_validator(mode="after")
    def _stitched(self) -> "Recipe":
        stitch = self.model.stitch
        if not stitch:
            return self
        if self.data.augment:
            raise ValueError("data.augment changes the first encoder's tokens only; leave it or model.stitch out")
        if self.task.uda:
            raise ValueError("task.uda.augment changes the first encoder's tokens only; leave uda or model.stitch out")
        if stitch.backbone == "scratch":
            raise ValueError("model.stitch.backbone: only the first encoder can be built from scratch; give a folder")
        if stitch.pooling.kind == "target_tokens" and self.data.text.prompt != "tokens":
            raise ValueError("model.stitch.pooling.kind=target_tokens: set data.text.prompt=tokens")
        on_frozen = [trick.kind for trick in self.tricks if trick.on_encoder]
        if stitch.frozen == "both" and (on_frozen or self.model.mixout or self.model.reinit_layers):
            what = f"tricks: {on_frozen[0]}" if on_frozen else "model.mixout or reinit_layers"
            raise ValueError(f"{what} acts on an encoder that model.stitch.frozen=both keeps as it is; drop one")
        frozen = self.model.freeze_embeddings or self.model.freeze_layers
        if stitch.frozen == "both" and (frozen or self.optimizer.embeddings_rate is not None):
            what = "model.freeze_embeddings and freeze_layers do" if frozen else "optimizer.embeddings_rate does"
            raise ValueError(f"{what} nothing with model.stitch.frozen=both; leave it out")
        return self

    @model_validator(mode="after")
    def _rates_matter(self) -> "Recipe":
        if self.optimizer.decay_by == "thirds" and self.optimizer.layer_decay == 1.0:
            raise ValueError("optimizer.decay_by does nothing with layer_decay=1.0; leave it out")
        if self.optimizer.embeddings_rate is not None and self.model.freeze_embeddings:
            raise ValueError("optimizer.embeddings_rate does nothing with model.freeze_embeddings; drop one of the two")
        return self

    @model_validator(mode="after")
    def _loss_adds_up(self) -> "Recipe":
        if self.task.of_batches() and self.train.accumulation > 1:
            raise ValueError(
                f"task: {self.task.of_batches()[0]} of parts does not add up; set train.accumulation=1 or take mse"
            )
        comparisons = [kind for kind in self.task.kinds() if kind in COMPARISONS]
        if comparisons and self.train.batch_size == 1:
            raise ValueError(
                f"task: {comparisons[0]} compares the essays of a batch, and train.batch_size=1 has one; raise it or "
                f"drop {comparisons[0]}"
            )
        dropouts = (self.model.dropout, self.model.attention_dropout, self.model.layer_drop, self.model.mixout)
        if self.task.r_drop and not any(dropouts) and self.model.head.kind == "linear":
            raise ValueError("task.r_drop does nothing without dropout: both passes would be equal; set model.dropout")
        return self

    @model_validator(mode="after")
    def _weights_are_learned_from_something(self) -> "Recipe":
        if self.task.weighting == "fixed":
            return self
        if self.task.weighed(len(self.data.target_columns)) == 1:
            raise ValueError("task.weighting: one column and one loss leave nothing to weigh; give terms or take fixed")
        for trick in self.tricks:
            if trick.drops_gradients():
                raise ValueError(
                    f"tricks: {trick.kind} drops the gradients of some passes, of which task.weighting=uncertainty "
                    "would learn; take fixed, fgm, or awp with form: two_pass"
                )
        return self

    @classmethod
    def from_mapping(cls, settings: Any, source: str) -> "Recipe":
        """Validates nested settings.

        Args:
            settings: what a YAML file holds.
            source: named in the errors.

        Raises:
            Fb3Error: naming each wrong key, its value and the nearest known key.
            RuleError: where all of them are of the right form.
        """
        if not isinstance(settings, dict):
            raise Fb3Error(f"{source}: a recipe is a mapping of groups, got {type(settings).__name__}")
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            ruled = all(e["type"] == "value_error" for e in error.errors())
            message = f"{source}: " + "; ".join(explain(cls, e) for e in error.errors())
            raise (RuleError if ruled else Fb3Error)(message) from None

    def debug(self) -> "Recipe":
        """The recipe as --debug trains it: a hundred essays, two folds, two epochs."""
        settings = self.model_dump(mode="json")
        for group, values in DEBUG.items():
            settings[group] |= values
        return Recipe.from_mapping(settings, "debug mode")

    def is_debug(self) -> bool:
        """Whether these are --debug's settings; whoever gave them by hand trained the same run."""
        return all(getattr(getattr(self, group), key) == v for group, vs in DEBUG.items() for key, v in vs.items())

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """The recipe's JSON schema, for editors that complete YAML."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"
