"""Settings of the metric: a name of fb3's table, or a function of one's own."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from fb3.recipe.settings import Settings

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


def _form(value: Any) -> str | None:
    """The member of the union that a value is meant for; none refuses it with the message below."""
    if isinstance(value, (dict, FileMetricSettings)):
        return FileMetricSettings.__name__
    return "name" if value in get_args(MetricName) else None


MetricSettings = Annotated[
    Annotated[MetricName, Tag("name")] | Annotated[FileMetricSettings, Tag(FileMetricSettings.__name__)],
    Discriminator(
        _form,
        custom_error_type="metric",
        custom_error_message=f"want one of {', '.join(get_args(MetricName))}, or {{file: mine.py, function: name}}",
    ),
]
