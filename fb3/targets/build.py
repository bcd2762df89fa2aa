"""The table of targets."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error
from fb3.recipe.recipe import Recipe
from fb3.system.progress import say
from fb3.targets.decisions import Decision, decision_of, unfitted
from fb3.targets.target import Classes, Probabilities, Scores, Target

_MANY_CLASSES, _MOST_CLASSES = 1000, 5000
# Keyed by task.kind.
TARGETS: dict[str, type[Target]] = {
    "regression": Scores,
    "binned": Scores,
    "ordinal": Scores,
    "classification": Classes,
    "multilabel": Probabilities,
}


def target_of(recipe: Recipe, decision: Decision | None = None) -> Target:
    """The target of a recipe.

    Args:
        recipe: a recipe; its classes are those of `resolve`, where it was trained.
        decision: the fitted decision; none: rounding, the likeliest class or 0.5 stand in where the recipe wants one.
    """
    target = TARGETS[recipe.task.kind](recipe.data, recipe.task, recipe.metric)
    if decision is None:
        lowest, highest = (getattr(target, name, 0.0) for name in ("minimum", "maximum"))
        decision = unfitted(decision_of(recipe), len(target.columns), lowest, highest)
    target.decision = decision
    return target


def resolve(recipe: Recipe, essays: pd.DataFrame) -> Recipe:
    """The recipe with everything that the training essays decide about the target, as a run stores it.

    Raises:
        Fb3Error: classes that no output can stand for.
    """
    changes: dict[str, Any] = {}
    task = recipe.task
    if task.kind == "classification" and task.classes is None:
        changes["classes"] = _classes(essays[recipe.data.target_columns[0]])
    if task.kind == "regression" and task.standardise:
        location, scale = _units(essays[list(recipe.data.target_columns)])
        changes = {"location": task.location or location, "scale": task.scale or scale}
    if not changes:
        return recipe
    settings = recipe.model_dump(mode="json")
    settings["task"] |= changes
    return Recipe.from_mapping(settings, "the recipe with what train.csv says of its targets")


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """The different labels, sorted; as numbers where all are whole numbers."""
    found = sorted(set(labels))
    if all(re.fullmatch("-?[0-9]+", label) for label in found):
        found.sort(key=lambda label: (int(label), label))
    return found


def _units(targets: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column.

    Rounded to six digits: another machine may add up in another order, and would then go on with another recipe.
    """
    values = targets.to_numpy(np.float64)
    means, deviations = ([float(f"{value:.6g}") for value in each] for each in (values.mean(0), values.std(0)))
    if 0.0 in deviations:
        raise Fb3Error(
            f"task.standardise: column {targets.columns[deviations.index(0.0)]} holds the same score in every row, so "
            "there is no scale to learn; leave the column out of data.target_columns"
        )
    return means, deviations


def _classes(labels: pd.Series) -> list[str]:
    found = sorted_classes(labels)
    if len(found) < 2:
        raise Fb3Error(f"data.target_columns: {labels.name} holds the label {found[0]!r} alone; name the right column")
    many = f"column {labels.name} holds {len(found):,} different labels in {len(labels):,} rows"
    mend = "is it a column of numbers? Then take task.kind=regression"
    if len(found) > _MOST_CLASSES:
        raise Fb3Error(f"data.target_columns: {many}, and at most {_MOST_CLASSES:,} classes can be told apart; {mend}")
    if len(found) > _MANY_CLASSES:
        say(f"warning: {many}; {mend}")
    return found
