"""One fold of an estimator: from texts as features to predictions."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fb3.data.tfidf import TermCounts, tfidf
from fb3.errors import Fb3Error
from fb3.prediction.estimators.decision_functions import estimate
from fb3.prediction.estimators.embeddings import vectors
from fb3.prediction.estimators.feature_inputs import FeatureInputs, encoders, source_recipe
from fb3.prediction.estimators.feature_matrix import beside, scaled
from fb3.prediction.predictions import Predictions
from fb3.prediction.scorer_prediction import How
from fb3.recipe import Recipe
from fb3.recipe.estimator import KEEPS_ESSAYS
from fb3.runs.checkpoint import read_weights
from fb3.runs.run_folder import Member
from fb3.system.file_names import VECTORS, WEIGHTS, feature_folder
from fb3.system.files import read_json
from fb3.targets.build import target_of


class Features(NamedTuple):
    """R essays: each encoder's vectors, (R, D) float16; statistics (R, S); each counted feature's counts, by number;
    means of frames, (R, D) float16, NaN where an item has none.
    """

    blocks: list[np.ndarray]
    statistics: np.ndarray | None
    counts: dict[int, TermCounts]
    frames: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "Features":
        """Some of the essays."""
        counts = {number: TermCounts(found.counts[rows], found.terms) for number, found in self.counts.items()}
        statistics = None if self.statistics is None else self.statistics[rows]
        frames = None if self.frames is None else self.frames[rows]
        return Features([block[rows] for block in self.blocks], statistics, counts, frames)

    def filled(self, mean: np.ndarray | None) -> list[np.ndarray]:
        """The vectors, and the frames with a mean (D,) where an item has none."""
        if self.frames is None:
            return self.blocks
        if self.frames.shape[1] != len(mean):
            raise Fb3Error(
                f"frames of {self.frames.shape[1]} numbers, and the fold knows {len(mean)}; take its training's files"
            )
        return [*self.blocks, np.where(np.isnan(self.frames), mean, self.frames)]


def predict_estimator(
    member: Member, folder: Path, inputs: FeatureInputs, ids: np.ndarray, rows: np.ndarray, how: How
) -> Predictions:
    """An estimator's predictions of `rows`, as far as the encoders reached them in time."""
    blocks, reached = [], np.ones(len(rows), bool)
    for number, encoded in inputs.tokens.items():
        block, there = vectors(member.path, member.recipe, number, folder, encoded, rows, how)
        blocks.append(block)
        reached &= there
    rest = Features([], inputs.statistics, inputs.counts, inputs.frames).of(rows[reached])
    features = rest._replace(blocks=[block[reached] for block in blocks])
    values = estimate_fold(member.path, member.recipe, folder, features)
    return Predictions(ids[rows[reached]], values, target_of(member.recipe).columns, how.name)


def estimate_fold(run: Path, recipe: Recipe, folder: Path, features: Features) -> np.ndarray:
    """Predictions (R, K) float32 of essays by their features, from the files of a run folder or a run in a bundle."""
    fold = {name: tensor.numpy() for name, tensor in read_weights(folder / WEIGHTS).items()}
    weight, target = recipe.estimator.statistics_weight, target_of(recipe)
    terms = []
    for number, found in features.counts.items():
        vocabulary = read_json(vocabulary_file(folder, number), {"terms": list})["terms"]
        terms.append(tfidf(found.of(vocabulary), fold[f"idf.{number}"]))
    x = beside(scaled(features.filled(fold.get("frames_mean")), features.statistics, fold, weight), terms)
    kept = np.zeros((0, 0))
    if recipe.estimator.kind in KEEPS_ESSAYS:
        kept = scaled(_kept_blocks(run, recipe, folder, fold), fold.get("statistics"), fold, weight)
    return estimate(recipe.estimator, x, fold, kept, folder, target.exclusive).astype(np.float32)


def _kept_blocks(run: Path, recipe: Recipe, folder: Path, fold: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The vectors of the training essays that a fold keeps: some rows of the run's, or the fold's own."""
    blocks = []
    for number in encoders(recipe):
        if source_recipe(run, number):
            blocks.append(fold[f"vectors.{number}"])
        else:
            blocks.append(read_weights(feature_folder(run, number) / VECTORS)["vectors"].numpy()[fold["rows"]])
    return [*blocks, fold["frames"]] if "frames" in fold else blocks


def vocabulary_file(folder: Path, feature: int) -> Path:
    """The terms of a feature, in a fold folder."""
    return folder / f"vocabulary{feature}.json"
