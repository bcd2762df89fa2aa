"""FLOPs of a run at inference, by its encoders and its training essays; no torch but for pictures."""

from pathlib import Path

import numpy as np

from fb3.errors import Fb3Error
from fb3.models.flops import forward_flops
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.prediction.member_inputs import count_inputs, member_flops, passes
from fb3.recipe import load_recipe
from fb3.runs.fold_json import is_finished
from fb3.runs.run_folder import Member, training_essays
from fb3.system.file_names import CONFIG, ENCODER, ENSEMBLE, RECIPE, fold_folders
from fb3.system.files import read_json

_ESSAYS = 256  # training essays whose mean is taken
_COUNTING = 8e10  # FLOPs of a T4 in 3 ms, in which one core counts the words of an essay of FB3
_READING = 5e9  # FLOPs of a T4 in 0.2 ms, in which one core reads an item's vectors and takes their mean


def trained_run(run: Path) -> Member | None:
    """A run folder with its finished folds, as inference would use it; none where a path is no such folder."""
    if not (run / RECIPE).is_file() or (run / ENSEMBLE).is_file():
        return None
    folds = [fold for fold in fold_folders(run) if is_finished(fold)]
    return Member(run.resolve().name, run, load_recipe(run / RECIPE), folds) if folds else None


def fold_flops(member: Member, data: Path | None) -> float:
    """FLOPs of one fold for one essay, the mean over some training essays; folds that share vectors share their price.

    Where these essays are not known, one that fills the recipe's length stands in.

    Args:
        data: the folder with the run's train.csv; none: the one that the run recorded.
    """
    try:
        essays = training_essays(member.path, member, data).reset_index()
    except Fb3Error:
        if member.recipe.estimator:
            return np.nan
        longest = np.array([member.recipe.data.max_length])
        return float(forward_flops(read_json(member.path / ENCODER / CONFIG), longest)[0])
    some = essays.sample(min(_ESSAYS, len(essays)), random_state=0)
    encoded = count_inputs(member, some)
    counts = not isinstance(encoded, FeatureInputs) or encoded.counts or encoded.statistics is not None
    flops = member_flops(member, encoded) / len(some) or (_COUNTING if counts else _READING)
    return flops * passes(member, encoded) / len(member.folds)
