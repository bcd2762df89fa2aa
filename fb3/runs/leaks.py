"""Leaks: runs that learned from models which saw their validation essays, by what run folders record."""

from pathlib import Path

from fb3.data.folds import split_hash
from fb3.data.tables import FOLD_COLUMN, read_table
from fb3.recipe import Recipe
from fb3.runs.scores import told_leak
from fb3.system.file_names import ENSEMBLE, ENVIRONMENT
from fb3.system.files import read_json


def recorded_leak(run: Path, recipe: Recipe) -> str:
    """The reason why out-of-fold predictions of a run folder, or of an ensemble's, know some truths; empty for none.

    A run on pseudo-labels must prove that they were made for its own split: by the split's hash in environment.json.
    """
    if (run / ENSEMBLE).is_file():
        return "; ".join(map(str, read_json(run / ENSEMBLE).get("leaks") or []))
    if (leak := told_leak(run, recipe)) or not recipe.pseudo:
        return leak
    table = read_table(run / "folds.csv", [recipe.data.id_column, FOLD_COLUMN])
    if labels_of(run).get("split") != split_hash(table[recipe.data.id_column], table[FOLD_COLUMN]):
        return f"{ENVIRONMENT} does not say that its pseudo-labels were made for its split"
    return ""


def labels_of(run: Path) -> dict:
    """The record of a run's pseudo-labels in environment.json; empty where there is none."""
    recorded = read_json(run / ENVIRONMENT).get("pseudo") if (run / ENVIRONMENT).is_file() else None
    return recorded if isinstance(recorded, dict) else {}
