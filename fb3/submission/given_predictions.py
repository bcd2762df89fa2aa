"""Members without a model: packed predictions for the test essays, used where all of these are among them."""

from typing import NamedTuple

import numpy as np

from fb3.bundles.bundle import Bundle
from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import parse_numbers, read_table
from fb3.prediction.predictions import Predictions
from fb3.recipe import Recipe
from fb3.submission.summary import Summary
from fb3.system.file_names import PREDICTIONS
from fb3.targets.build import target_of


class Given(NamedTuple):
    """Predictions for the test essays, and their weight in each column."""

    predictions: Predictions
    weights: dict[str, float]


def read_given(packed: Bundle, recipe: Recipe, ids: np.ndarray, summary: Summary) -> dict[str, Given]:
    """The packed predictions of the essays `ids`, by file; the summary says which were used, and why one was not."""
    found, columns, identifier = {}, target_of(recipe).columns, recipe.data.id_column
    for entry in packed.manifest.get(PREDICTIONS, []):
        name = entry["file"]
        try:
            packed.check(name)
            table = read_table(packed.path / name, [identifier, *columns])
            check_ids(table[identifier], packed.path / name)
            rows = match_ids(table[identifier], ids, name, "the test essays", subset=True)
            values = parse_numbers(table, identifier, list(columns), packed.path / name)[rows].astype(np.float32)
        except Exception as error:  # the hidden test essays are others; no file may cost the submission
            summary.left_out(name, str(error) or type(error).__name__)
            continue
        found[name] = Given(Predictions(ids, values, columns, name), entry["weights"])
        summary.used(name, 0.0)
    return found
