"""The essays as the features of an estimator need them: tokens, texts, statistics. Without torch, beside its import."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.text_statistics import text_statistics
from fb3.data.texts import input_texts
from fb3.data.tfidf import TermCounts, count_terms
from fb3.data.tokens import Encoded, item_frames
from fb3.models.flops import encoder_flops
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.data import DataSettings
from fb3.recipe.estimator import EmbeddingsSettings
from fb3.system.file_names import ENCODER, RECIPE, feature_folder

Tokenise = Callable[[pd.DataFrame, Path, DataSettings], Encoded]


@dataclass(frozen=True)
class FeatureInputs:
    """N essays. tokens: for each feature that is an encoder's, by its number. counts: for each feature that counts
    terms. statistics: (N, S); none: not wanted. shared: whether all folds have the same vectors. frames: (N, D)
    float16, see `ItemFrames.means`; none: not wanted.
    """

    count: int
    tokens: dict[int, Encoded]
    counts: dict[int, TermCounts]
    statistics: np.ndarray | None
    shared: bool
    frames: np.ndarray | None = None

    @property
    def total_lengths(self) -> np.ndarray:
        """Tokens of each essay over all encoders, (N,), by which devices share the essays; alike without encoders."""
        return sum((encoded.total_lengths for encoded in self.tokens.values()), np.zeros(self.count, np.int64))


def encoders(recipe: Recipe) -> dict[int, EmbeddingsSettings]:
    """The features that are an encoder's vectors, by their numbers."""
    return {n: each for n, each in enumerate(recipe.estimator.features) if each.kind == "embeddings"}


def source_recipe(run: Path, feature: int) -> Recipe | None:
    """The recipe of the fine-tuned run whose encoders a feature takes; none: one plain encoder serves all folds."""
    file = feature_folder(run, feature) / RECIPE
    return load_recipe(file) if file.is_file() else None


def encode_features(run: Path, recipe: Recipe, essays: pd.DataFrame, tokenise: Tokenise) -> FeatureInputs:
    """The essays as an estimator's run needs them. A fine-tuned source has its own way from texts to tokens."""
    tokens, sources = {}, {number: source_recipe(run, number) for number in encoders(recipe)}
    for number, source in sources.items():
        data = source.data if source else recipe.data
        plain = data.model_copy(update={"text": data.text.model_copy(update={"statistics": False}), "frames": None})
        tokens[number] = tokenise(essays, feature_folder(run, number) / ENCODER, plain)
    counted = {n: each for n, each in enumerate(recipe.estimator.features) if each.kind == "tfidf"}
    texts = [text if isinstance(text, str) else " ".join(text) for text in input_texts(essays, recipe.data)]
    wanted = recipe.data.text.statistics
    statistics = text_statistics(essays[recipe.data.text_column].tolist()) if wanted else None
    counts = {number: count_terms(texts, settings) for number, settings in counted.items()}
    frames = item_frames(essays, recipe.data)
    means = None if frames is None else frames.means()
    return FeatureInputs(len(essays), tokens, counts, statistics, not any(sources.values()), means)


def feature_flops(run: Path, inputs: FeatureInputs) -> float:
    """FLOPs of the encoders for all essays; the estimator's own are few beside them."""
    found = (encoder_flops(feature_folder(run, n) / ENCODER, encoded).sum() for n, encoded in inputs.tokens.items())
    return float(sum(found))


def tokens_hash(encoded: Encoded, rows: np.ndarray) -> str:
    """A hash of some rows' tokens."""
    digest = hashlib.sha1(usedforsecurity=False)
    for row in rows:
        digest.update(encoded.rows[row].tobytes() + b"|")
    return digest.hexdigest()
