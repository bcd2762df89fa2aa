"""Packed folds predict their out-of-fold essays again: the common part of parity and of int8 scales."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode
from fb3.runs.run_folder import Member, training_essays
from fb3.system.devices import Precision
from fb3.system.progress import progress
from fb3.targets.build import target_of


def measure_folds(
    title: str,
    members: list[Member],
    packed: Path,
    data: Path | None,
    measure: Callable[[Path, Member, int, pd.DataFrame], float],
) -> dict[str, float]:
    """Measures each fold of the runs in the folder `packed`; gives the numbers by names such as run/fold0.

    `measure` takes a run's own folder, the run as it is packed, a fold's position, and the training texts by id.
    """
    found = {}
    with progress(title, sum(len(member.folds) for member in members)) as advance:
        for member in members:
            folder = packed / "runs" / member.name
            inside = Member(member.name, folder, member.recipe, [folder / fold.name for fold in member.folds])
            texts = training_essays(member.path, member, data)
            for position, fold in enumerate(inside.folds):
                found[f"{member.name}/{fold.name}"] = round(measure(member.path, inside, position, texts), 5)
                advance()
    return found


def predict_again(
    member: Member, position: int, ids: pd.Series, texts: pd.DataFrame, device: str, precision: Precision | None = None
) -> np.ndarray:
    """A fold's predictions of some training essays, clipped as in oof.csv: (N, K), in the order of `ids`."""
    encoded = encode(member, texts.loc[ids])
    again = predict_fold(member, position, encoded, ids.to_numpy(), device, precision=precision, shown=False)
    return target_of(member.recipe).clip(again.values)
