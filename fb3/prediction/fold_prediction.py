"""One fold of a run on one device: from its files to predictions. The one place that asks how a fold predicts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.prediction.estimators.estimator_fold import predict_estimator
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.prediction.predictions import Predictions
from fb3.prediction.scorer_prediction import How, predict_scorer
from fb3.runs.checkpoint import load_fold, read_scales
from fb3.runs.run_folder import Member
from fb3.system.devices import Precision, cpu_has_int8, keep_freed_memory
from fb3.system.file_names import ENCODER, INT8
from fb3.system.progress import say
from fb3.tasks.build import build_task


def predict_fold(
    member: Member,
    fold: int,
    encoded: Encoded | FeatureInputs,
    ids: np.ndarray,
    device: str,
    *,
    rows: np.ndarray | None = None,
    until: float | None = None,
    precision: Precision | None = None,
    shown: bool = True,
) -> Predictions:
    """Predicts with one fold, in this process. Essays that fail in low precision, or get NaN, are predicted in fp32.

    An Fb3Error where the fold is broken, or predicts NaN in fp32 too.

    Args:
        member, fold: the run, and a position in its `folds`.
        encoded: the essays by `encode`.
        ids, rows, until, shown: see `predict`.
        precision: the encoder's; none: the recipe's for inference on this device, where a CPU computes linear layers in
            int8 if the fold was packed with scales.
    """
    keep_freed_memory()
    name = f"{member.name}/{member.folds[fold].name}"
    how = How(name, device, member.recipe.predict, until, precision, shown)
    rows = np.arange(len(ids)) if rows is None else rows
    predictor: Callable = predict_estimator if member.recipe.estimator else _predict_encoder
    return predictor(member, member.folds[fold], encoded, ids, rows, how)


def _predict_encoder(
    member: Member, folder: Path, encoded: Encoded, ids: np.ndarray, rows: np.ndarray, how: How
) -> Predictions:
    """The predictions of a fine-tuned encoder."""
    recipe = member.recipe
    return predict_scorer(
        lambda: (load_fold(recipe, member.path / ENCODER, folder), build_task(recipe)),
        encoded,
        ids,
        rows,
        how,
        lambda: _scales(member, folder, torch.device(how.device), how.name),
    )


def _scales(member: Member, folder: Path, device: torch.device, name: str) -> dict[str, torch.Tensor] | None:
    """A fold's int8 scales; none if it was packed without, the recipe names a precision, or the chip's int8 is slow."""
    wanted = device.type == "cpu" and member.recipe.predict.precision == "auto" and cpu_has_int8()
    if not wanted or not (folder / INT8).is_file():
        return None
    try:
        return read_scales(folder)
    except (Fb3Error, OSError) as error:
        say(f"{name}: not in int8 ({error})")
        return None
