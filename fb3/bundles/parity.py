"""Parity: a sample of each fold's out-of-fold predictions, replayed by the packed files through the inference path.

It catches what no hash can: another pooling than the one that was trained, a tokenizer that drifted, weights that load
into the wrong places, rows in another order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fb3.bundles.packing import Check
from fb3.bundles.tolerance import TOLERANCE, Tolerance, tolerance
from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error
from fb3.prediction.backends.choose import tell_backends
from fb3.prediction.fold_prediction import encode, predict_fold
from fb3.runs.run_folder import Member, check_known, training_essays
from fb3.system.devices import Precision, pick_device, pick_precision
from fb3.system.file_names import ENVIRONMENT, OOF, fold_number
from fb3.system.files import read_json
from fb3.system.progress import progress

ESSAYS = 12  # a fold: a second or two on a CPU for a base encoder


def replay(data: Path | None, essays: int = ESSAYS) -> Check:
    """A check for `write_bundle`.

    Args:
        data: the folder with the train.csv of the runs; none: the one that each run recorded.
        essays: how many of each fold.

    Returns:
        A function that takes the runs and the packed folder, and returns the largest difference of each fold.
    """

    def check(members: list[Member], packed: Path) -> dict[str, Any]:
        found = {}
        tell_backends((member.recipe for member in members), pick_device())
        total = sum(len(member.folds) for member in members)
        with progress("parity", total) as advance:
            for member in members:
                folder = packed / "runs" / member.name
                inside = Member(member.name, folder, member.recipe, [folder / fold.name for fold in member.folds])
                for name, difference in _replay_run(member.path, inside, data, essays, advance):
                    found[name] = difference
        return {"essays": essays, "largest_difference": found}

    return check


def replay_fold(member: Member, folder: Path, data: Path, essays: int, half: bool = False) -> float:
    """The largest difference of some essays' predictions, made again by a fold where it lies, in a run or a bundle.

    A bundle does not say in which precision its runs were trained: the recipe's, or bf16 where that leaves it open.

    Args:
        half: the weights were packed in fp16.

    Raises:
        Fb3Error: more than the precision allows.
    """
    made = None
    if not (member.path / ENVIRONMENT).is_file():
        wish = member.recipe.train.precision
        made = max(wish if wish in TOLERANCE else "bf16", "fp16" if half else "fp32", key=TOLERANCE.get)
    one = Member(member.name, member.path, member.recipe, [folder])
    return _replay_run(member.path, one, data, essays, lambda: None, made, "the files do not")[0][1]


def _replay_run(
    run: Path,
    member: Member,
    data: Path | None,
    essays: int,
    advance: Callable[[], None],
    made: Precision | None = None,
    verdict: str = "not packed, because the packed files do not",
) -> list[tuple[str, float]]:
    identifier, columns = member.recipe.data.id_column, list(member.recipe.data.target_columns)
    texts = training_essays(run, member, data)
    predicted = read_numbers(member.path / OOF, identifier, columns)
    made, replayed = _precisions(run, made)
    lower = max(made, replayed, key=TOLERANCE.get)
    allowed = tolerance(member, lower)
    out = []
    for position, folder in enumerate(member.folds):
        rows = predicted[predicted["fold"] == fold_number(folder)]
        if rows.empty:
            raise Fb3Error(f"{run / OOF}: no row of {folder.name}; train this fold again")
        rows = _sample(rows, texts, identifier, essays, run)
        want = rows[columns].to_numpy(np.float64)
        difference = _replay_fold(member, position, rows[identifier], texts, replayed) - want
        if allowed.exceeded(difference, float(want.std(0).mean())):
            raise _refusal(difference, want, rows[identifier].to_numpy(), run / folder.name, allowed, lower, verdict)
        out.append((f"{member.name}/{folder.name}", round(float(np.abs(difference).max()), 5)))
        advance()
    return out


def _sample(rows: pd.DataFrame, texts: pd.DataFrame, identifier: str, essays: int, run: Path) -> pd.DataFrame:
    """Some rows in random order, the one with the longest essay among them."""
    check_known(rows[identifier], texts, run)
    longest = texts.loc[rows[identifier]].iloc[:, 0].str.len().to_numpy().argmax()
    chosen = rows.drop(rows.index[longest]).sample(min(essays, len(rows)) - 1, random_state=0)
    return pd.concat([rows.iloc[[longest]], chosen]).sample(frac=1, random_state=1)


def _precisions(run: Path, made: Precision | None) -> tuple[Precision, Precision]:
    """Of the out-of-fold predictions, and of the replay: the same where this machine has it, else float32."""
    if made is None and (run / ENVIRONMENT).is_file():
        made = read_json(run / ENVIRONMENT).get("precision")
    if not isinstance(made, str) or made not in TOLERANCE:
        raise Fb3Error(
            f"{run / ENVIRONMENT}: does not say in which precision the run was trained, so its predictions cannot be "
            "replayed; copy the whole run folder, or pack unproven with --no-parity"
        )
    return made, made if made == pick_precision("auto", pick_device()) else "fp32"


def _replay_fold(member: Member, fold: int, ids: pd.Series, texts: pd.DataFrame, precision: Precision) -> np.ndarray:
    """The packed fold's predictions, clipped as oof.csv has them: (N, K)."""
    device = str(pick_device())
    encoded = encode(member, texts.loc[ids])
    again = predict_fold(member, fold, encoded, ids.to_numpy(), device, precision=precision, shown=False)
    return np.clip(again.values, member.recipe.task.minimum, member.recipe.task.maximum)


def _refusal(
    difference: np.ndarray,
    want: np.ndarray,
    ids: np.ndarray,
    fold: Path,
    allowed: Tolerance,
    precision: Precision,
    verdict: str,
) -> Fb3Error:
    """The error for predictions that differ by more than the lower of the two precisions allows.

    difference, want: (N, K). ids: (N,).
    """
    largest, rms, spread = np.abs(difference).max(1), np.sqrt((difference**2).mean()), want.std(0).mean()
    worst = int(largest.argmax())
    return Fb3Error(
        f"{fold}: {verdict} give the predictions in {OOF}: {len(ids)} essays replayed differ by {rms:.4f} (root mean "
        f"square; the predictions spread by {spread:.4f}), most {ids[worst]} by {largest[worst]:.3f}, where "
        f"{precision} allows {allowed.largest:.2g}. Is recipe.yaml the one it was trained with, encoder/ its "
        "tokenizer, model.safetensors its weights, train.csv its essays?"
    )
