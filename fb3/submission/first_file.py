"""The first submission file: valid before any model is loaded."""

import math
import time
from pathlib import Path

import numpy as np

from fb3.bundles.bundle import Bundle
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.submission.form import SubmissionForm
from fb3.submission.submission_file import Standing
from fb3.submission.summary import Summary
from fb3.system.file_names import FOLD_JSON
from fb3.system.files import read_json
from fb3.system.progress import say


def stand(asked: SubmissionForm, packed: Bundle, recipe: Recipe | None, out: Path, summary: Summary) -> Standing:
    """Writes the training means, of all folds that can be read, in the form that is asked for."""
    columns = asked.columns
    bounds = (recipe.task.minimum, recipe.task.maximum) if recipe else (-np.inf, np.inf)
    found = _training_means(packed, columns)
    if not found:
        say(f"{packed.path}: no fold tells its training means; the middle of the range stands in")
    middle = (bounds[0] + bounds[1]) / 2 if recipe else 0.0
    means = {c: float(np.mean([f[c] for f in found])) if found else middle for c in columns}
    standing = Standing(asked.ids, means, bounds, out)
    summary.phase("first file")
    say(f"{out}: {len(asked.ids)} rows of training means stand after {time.monotonic() - summary.start:.1f} s")
    return standing


def _training_means(packed: Bundle, columns: list[str]) -> list[dict[str, float]]:
    found = []
    for _, _, folds in packed.runs():
        for fold in folds:
            try:
                packed.check((fold / FOLD_JSON).relative_to(packed.path).as_posix())
                means = read_json(fold / FOLD_JSON, {"target_means": dict})["target_means"]
                numbers = {column: float(means[column]) for column in columns}
                if not all(map(math.isfinite, numbers.values())):
                    raise Fb3Error(f"{fold / FOLD_JSON}: target_means are {numbers}")
                found.append(numbers)
            except Exception as error:  # the first file is to stand whatever a fold says
                why = error if isinstance(error, Fb3Error) else f"{fold / FOLD_JSON}: {error!r}"
                say(f"{why}: its means are not used")
    return found
