"""Tasks: what a target is. Each gives a loss, a prediction on the submission's scale, and a score."""

from fb3.recipe import Recipe
from fb3.tasks.base import StepOutput, Task
from fb3.tasks.regression import Regression

__all__ = ["Regression", "StepOutput", "Task", "build_task"]


def build_task(recipe: Recipe) -> Task:
    """The task of a recipe."""
    return Regression(recipe.task, recipe.data.target_columns)
