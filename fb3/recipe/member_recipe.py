"""The recipe of a member of another kind: the competition's settings, and an estimator on fixed features."""

from collections.abc import Sequence
from typing import Any

from fb3.errors import Fb3Error, nearest
from fb3.recipe.estimator import EstimatorSettings
from fb3.recipe.load import overridden
from fb3.recipe.recipe import Recipe
from fb3.recipe.rules import TARGET_KEYS
from fb3.recipe.settings import kinds

_KEPT = ("data", "folds", "metric", "decision", "predict", "competition")  # groups that say nothing of an encoder


def member_recipe(
    base: Recipe, kind: str, features: Sequence[dict[str, Any]], overrides: Sequence[str] = (), statistics: bool = False
) -> Recipe:
    """The recipe with which `fb3 member` trains; `fb3 train` with the same YAML trains the same.

    Args:
        base: gives columns, target, metric and folds; its model and the way it learns are left out.
        kind: the estimator.
        features: settings of each feature.
        overrides: `key.sub=value` texts on top.
        statistics: whether the texts' statistics are features too.

    Raises:
        Fb3Error: no such estimator; see `overridden`.
    """
    if kind not in (known := kinds(EstimatorSettings)):
        raise Fb3Error(f"--model {kind}: {nearest(kind, known)}")
    settings = base.model_dump(mode="json")
    made = {name: settings[name] for name in _KEPT}
    made["data"] |= {"augment": None, "weight_column": None}
    if not any(each["kind"] == "frames" for each in features):
        made["data"]["frames"] = None
    made["data"]["text"]["statistics"] = statistics
    made["task"] = {name: value for name, value in settings["task"].items() if name in TARGET_KEYS}
    made["train"] = {"seed": base.train.seed, "precision": base.train.precision}
    made["estimator"] = {"kind": kind, "features": list(features)}
    recipe = Recipe.from_mapping(made, f"--model {kind}")
    return overridden(recipe, overrides) if overrides else recipe
