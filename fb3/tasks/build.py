"""The table of tasks. Each gives a loss, a prediction on the submission's scale, and a score."""

from fb3.recipe import Recipe
from fb3.recipe.task import ClassesSettings, LabelsSettings
from fb3.targets.build import target_of
from fb3.tasks.base import StepOutput, Task
from fb3.tasks.classes import Binned, LogitSqueezing, Ordinal
from fb3.tasks.distillation import Distillation
from fb3.tasks.labels import Classification, Multilabel
from fb3.tasks.r_drop import RDrop
from fb3.tasks.regression import Regression
from fb3.tasks.uda import UDA

__all__ = ["UDA", "Binned", "LogitSqueezing", "Ordinal", "RDrop", "Regression", "StepOutput", "Task", "build_task"]

TASKS = {
    "regression": Regression,
    "binned": Binned,
    "ordinal": Ordinal,
    "classification": Classification,
    "multilabel": Multilabel,
}


def build_task(recipe: Recipe) -> Task:
    """The task of a recipe, in its wrappers, on the CPU; without UDA, whose unlabelled essays only training reads."""
    settings = recipe.task
    task: Task = TASKS[settings.kind](settings, target_of(recipe))
    if recipe.pseudo and recipe.pseudo.use == "distil":
        task = Distillation(task, recipe.pseudo.weight or 1.0)
    if isinstance(settings, ClassesSettings | LabelsSettings) and settings.squeeze:
        task = LogitSqueezing(task, settings.squeeze)
    if settings.r_drop:
        task = RDrop(task, settings.r_drop.alpha)
    return task
