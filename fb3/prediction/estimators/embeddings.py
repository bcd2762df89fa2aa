"""Vectors of encoders that stay as they are, the same code for training and test essays."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from fb3.data.tokens import Encoded
from fb3.models.build import build_embedder
from fb3.models.scorer import Scorer
from fb3.prediction.estimators.feature_inputs import encoders, source_recipe, tokens_hash
from fb3.prediction.scorer_prediction import How, predict_scorer
from fb3.recipe import Recipe
from fb3.runs.checkpoint import assign_weights, load_fold, read_weights
from fb3.system.file_names import ENCODER, WEIGHTS, feature_folder
from fb3.system.files import sha256
from fb3.tasks.base import Task

_MOST_KEPT = 8
# Vectors that this process has computed, by everything that decides them: the folds of a run, and runs on the same
# encoder, need them again. The device pool's processes keep their own.
_VECTORS: OrderedDict[Hashable, np.ndarray] = OrderedDict()


class VectorsTask:
    """Stands in for a task where a scorer's pooled vectors are wanted, (B, width)."""

    def __init__(self, width: int) -> None:
        self.target = SimpleNamespace(columns=tuple(map(str, range(width))))

    def predict(self, model: Scorer, batch: Mapping[str, Tensor]) -> Tensor:
        return model.pool(batch)


def load_embedder(run: Path, recipe: Recipe, feature: int, fold: Path) -> Scorer:
    """The scorer that gives a feature's vectors: in float32, on the CPU, in eval mode."""
    settings, home, source = encoders(recipe)[feature], feature_folder(run, feature), source_recipe(run, feature)
    if source:
        scorer = load_fold(source, home / ENCODER, feature_folder(fold, feature))
        return build_embedder(settings, source.data, scorer, init="empty").eval()
    scorer = build_embedder(settings, recipe.data, home / ENCODER, init="empty")
    assign_weights(scorer, read_weights(home / WEIGHTS), str(home / WEIGHTS))
    return scorer.eval()


def weights_file(run: Path, feature: int, fold: Path) -> Path:
    """The weights of a feature's encoder: the run's, or the fold's own."""
    shared = feature_folder(run, feature) / WEIGHTS
    return shared if shared.is_file() else feature_folder(fold, feature) / WEIGHTS


def vectors(
    run: Path, recipe: Recipe, feature: int, fold: Path, encoded: Encoded, rows: np.ndarray, how: How
) -> tuple[np.ndarray, np.ndarray]:
    """A feature's vectors of some essays, and which of them were reached in time.

    Returns:
        (R, D) float16, rounded alike for training and test essays, and (R,) bool.
    """
    settings, file = encoders(recipe)[feature], weights_file(run, feature, fold)
    how = replace(how, precision=how.wanted())
    key = (_hash(file), tokens_hash(encoded, rows), settings.layers, settings.normalise, how.precision, how.device)
    if key not in _VECTORS:
        found, reached = _compute(lambda: load_embedder(run, recipe, feature, fold), encoded, rows, how)
        if not reached.all():  # cut off by a deadline
            return found, reached
        _VECTORS[key] = found
        while len(_VECTORS) > _MOST_KEPT:
            _VECTORS.popitem(last=False)
    _VECTORS.move_to_end(key)
    return _VECTORS[key], np.ones(len(rows), bool)


def _compute(load: Callable[[], Scorer], encoded: Encoded, rows: np.ndarray, how: How) -> tuple[np.ndarray, np.ndarray]:
    def with_task() -> tuple[Scorer, Task]:
        scorer = load()
        return scorer, VectorsTask(scorer.pooling.width)

    ids = np.arange(len(encoded.rows))
    found = predict_scorer(with_task, encoded, ids, rows, how)
    out, reached = np.zeros((len(ids), found.values.shape[1]), np.float16), np.zeros(len(ids), bool)
    out[found.ids], reached[found.ids] = found.values, True
    return out[rows], reached[rows]


def _hash(file: Path) -> str:
    stat = file.stat()
    return _hash_of(file, stat.st_mtime_ns, stat.st_size)


@cache
def _hash_of(file: Path, changed: int, size: int) -> str:
    """The hash of a file; its time and size tell another file of the same name."""
    return sha256(file)
