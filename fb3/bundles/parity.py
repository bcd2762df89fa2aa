"""Parity: some essays of each fold, predicted again by the packed files and compared with the out-of-fold predictions.

It catches errors that no hash can: another pooling than the trained one, a tokenizer that drifted, weights that load
into the wrong places, rows in another order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fb3.bundles.packed_folds import measure_folds, predict_again
from fb3.bundles.packing import PackingStep
from fb3.bundles.tolerance import TOLERANCE, least_precision, tolerance
from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error
from fb3.prediction.backends.choose import tell_backends
from fb3.runs.run_folder import Member, check_known, training_essays
from fb3.system.devices import Precision, pick_device, pick_precision
from fb3.system.file_names import ENVIRONMENT, OOF, fold_number
from fb3.system.files import read_json
from fb3.targets.build import target_of

ESSAYS = 12  # per fold: a second or two on a CPU for a base encoder


def replay(data: Path | None, essays: int = ESSAYS) -> PackingStep:
    """The check of parity, for `write_bundle`.

    Args:
        data: the folder with the runs' train.csv; None: the one that each run recorded.
        essays: how many of each fold.

    Returns:
        A function that takes the runs and the packed folder, and returns the largest difference of each fold.
    """

    def check(members: list[Member], packed: Path) -> dict[str, Any]:
        def difference(run: Path, member: Member, position: int, texts: pd.DataFrame) -> float:
            made = _trained_precision(run)
            return _compare(run, member, position, texts, essays, made, "not packed, because the packed files do not")

        tell_backends((member.recipe for member in members), pick_device())
        return {"essays": essays, "largest_difference": measure_folds("parity", members, packed, data, difference)}

    return check


def replay_fold(member: Member, folder: Path, data: Path, essays: int, half: bool = False) -> float:
    """Predicts some essays of one fold again, in a run folder or a bundle; returns the largest difference.

    A bundle does not say in which precision its runs were trained: the recipe's is assumed, or bf16 for `auto`; fp16 at
    best where the weights were packed in `half` precision.

    Raises:
        Fb3Error: the difference is larger than the precision allows.
    """
    if (member.path / ENVIRONMENT).is_file():
        made = _trained_precision(member.path)
    else:
        wish = member.recipe.train.precision
        made = max(wish if wish in TOLERANCE else "bf16", "fp16" if half else "fp32", key=TOLERANCE.get)
    one = Member(member.name, member.path, member.recipe, [folder])
    texts = training_essays(member.path, one, data)
    return _compare(member.path, one, 0, texts, essays, made, "the files do not")


def _trained_precision(run: Path) -> Precision:
    made = read_json(run / ENVIRONMENT).get("precision") if (run / ENVIRONMENT).is_file() else None
    if not isinstance(made, str) or made not in TOLERANCE:
        raise Fb3Error(
            f"{run / ENVIRONMENT}: does not say in which precision the run was trained, so its predictions cannot be "
            "replayed; copy the whole run folder, or pack unproven with --no-parity"
        )
    return made


def _compare(
    run: Path, member: Member, position: int, texts: pd.DataFrame, essays: int, made: Precision, verdict: str
) -> float:
    """The largest difference between a fold's replayed predictions and oof.csv's, which were `made` in a precision."""
    settings, folder = member.recipe.data, member.folds[position]
    identifier, columns = settings.id_column, list(target_of(member.recipe).columns)
    predicted = read_numbers(member.path / OOF, identifier, columns)
    rows = predicted[predicted["fold"] == fold_number(folder)]
    if rows.empty:
        raise Fb3Error(f"{run / OOF}: no row of {folder.name}; train this fold again")
    check_known(rows[identifier], texts, run)
    rows = _some(rows, texts.loc[rows[identifier]].iloc[:, 0].str.len().to_numpy(), essays)
    device = pick_device()
    replayed = made if made == pick_precision("auto", device) else "fp32"
    lower = max(made, replayed, least_precision(member), key=TOLERANCE.get)
    allowed, want = tolerance(member, lower), rows[columns].to_numpy(np.float64)  # (N, K)
    difference = predict_again(member, position, rows[identifier], texts, str(device), replayed) - want
    largest, spread = np.abs(difference).max(1), float(want.std(0).mean())  # (N,)
    if allowed.exceeded(difference, spread):
        worst, rms = int(largest.argmax()), np.sqrt((difference**2).mean())
        raise Fb3Error(
            f"{run / folder.name}: {verdict} give the predictions in {OOF}: {len(rows)} essays replayed differ by "
            f"{rms:.2g} (root mean square; the predictions spread by {spread:.2g}), most "
            f"{rows[identifier].iloc[worst]} by {largest[worst]:.2g}, where {lower} allows {allowed.largest:.2g}. Is "
            "recipe.yaml the one it was trained with, encoder/ its tokenizer, model.safetensors its weights, train.csv "
            "its essays?"
        )
    return float(largest.max())


def _some(rows: pd.DataFrame, lengths: np.ndarray, essays: int) -> pd.DataFrame:
    """Some rows in random order, the one with the longest essay among them."""
    longest = lengths.argmax()
    others = rows.drop(rows.index[longest]).sample(min(essays, len(rows)) - 1, random_state=0)
    return pd.concat([rows.iloc[[longest]], others]).sample(frac=1, random_state=1)
