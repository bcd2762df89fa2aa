"""The identity of a training: only runs of the same recipe, files and split can be continued or joined."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error, shortened
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.load import differences
from fb3.system.file_names import ENVIRONMENT, PREPARE, PSEUDO, RECIPE
from fb3.system.files import read_json

_TOLD = 5  # settings that are named where two recipes differ in many


@dataclass(frozen=True)
class Identity:
    """The recipe, and whatever else decides a training, by the name that errors show: hashes of files, the split."""

    recipe: Recipe
    ingredients: Mapping[str, Any]

    def differences(self, there: "Identity") -> str:
        """The differences, to follow the words "made with another"; empty where there are none.

        The file of data.prepare and the folder of pseudo-labels are compared by their hashes, wherever they lie.
        """
        one, other = (each.recipe.with_prepare(PREPARE).with_labels(PSEUDO) for each in (self, there))
        recipe = [shortened(each, 100) for each in differences(one, other)]
        if (further := len(recipe) - _TOLD) > 1:
            recipe = [*recipe[:_TOLD], f"and {further} more"]
        one, two = self.ingredients, there.ingredients
        names = [name for name in {**one, **two} if one.get(name) != two.get(name)]
        return ", ".join([f"recipe ({'; '.join(recipe)})", *names] if recipe else names)


def named_files(digests: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """Hashes by the names of the training files, from hashes by their keys in environment.json."""
    names = {"train_sha256": recipe.data.files.train, "unlabelled_sha256": "task.uda.file", "prepare_sha256": PREPARE}
    names["pseudo_sha256"] = "pseudo.folder"
    files = {key: digest for key, digest in digests.items() if key.endswith("_sha256")}
    return {names.get(key, key.removesuffix("_sha256")): digest for key, digest in files.items()}


def recorded(run: Path) -> Identity:
    """The recipe and files that a run folder says it was trained with; an Fb3Error where it does not say so."""
    recipe = load_recipe(run / RECIPE)
    if not (files := named_files(read_json(run / ENVIRONMENT), recipe)):
        raise Fb3Error(f"{run / ENVIRONMENT}: does not say what the run was trained on; train it again")
    return Identity(recipe, files)
