"""Settings of the metric: a name of fb3's table, one with settings, or a function of one's own."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from fb3.errors import Fb3Error
from fb3.recipe.settings import Count, Settings

MetricName = Literal[
    "mcrmse",
    "rmse",
    "mae",
    "pearson",
    "spearman",
    "qwk",
    "auc",
    "mean_column_auc",
    "log_loss",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "micro_f1",
    "f1_mean",
    "map_at_k",
    "map_at_5",
    "map_at_10",
    "map_at_25",
]
Needs = Literal["values", "probabilities", "ranks", "decisions"]


class FileMetricSettings(Settings):
    """A metric of one's own, for training and scoring; inference never reads the file."""

    file: Annotated[str, Field(pattern=r".\.py$")]
    """A Python file: a path from the working directory, or an absolute one. It is run when something is scored."""
    function: Annotated[str, Field(min_length=1)]
    """The function in it, from truths and predictions, numpy arrays (N, K) of float64, to one number."""
    lower_is_better: bool = False
    """Whether a lower score is the better one, as of an error."""
    needs: Needs = "values"
    """The form of the predictions that it is given: decisions are whole numbers, or 1 for the decided class and 0 for
    the others; all other forms are the predictions as they are."""

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"


class TwoLevelF1Settings(Settings):
    """The mean of macro and micro F1 of classes and of their parents, as in the 2022 WeChat Big Data Challenge.

    Each macro F1 is a mean over the classes that truths or decisions have.
    """

    kind: Literal["two_level_f1"]
    """The mean of four F1s."""
    parents: Count | dict[str, str]
    """The parent of each class: by its name, or as many first characters of a class's name."""

    def __str__(self) -> str:
        return self.kind

    def parents_of(self, classes: Sequence[str]) -> list[str]:
        """The parent of each class; an Fb3Error names one that has none."""
        if isinstance(self.parents, int):
            return [name[: self.parents] for name in classes]
        if absent := [name for name in classes if name not in self.parents]:
            raise Fb3Error(f"metric.parents: class {absent[0]!r} has none ({len(absent)} such classes); name each")
        return [self.parents[name] for name in classes]


OwnMetricSettings = FileMetricSettings | TwoLevelF1Settings


def _form(value: Any) -> str | None:
    """The member of the union that a value is meant for; none refuses it with the message below."""
    if isinstance(value, OwnMetricSettings):
        return type(value).__name__
    if isinstance(value, dict):
        return (TwoLevelF1Settings if "kind" in value else FileMetricSettings).__name__
    return "name" if value in get_args(MetricName) else None


MetricSettings = Annotated[
    Annotated[MetricName, Tag("name")]
    | Annotated[FileMetricSettings, Tag(FileMetricSettings.__name__)]
    | Annotated[TwoLevelF1Settings, Tag(TwoLevelF1Settings.__name__)],
    Discriminator(
        _form,
        custom_error_type="metric",
        custom_error_message=f"want one of {', '.join(get_args(MetricName))}, {{kind: two_level_f1, parents: 2}}, or "
        "{file: mine.py, function: name}",
    ),
]
