"""int8 scales of packed folds: measured on training essays, kept where the fold's out-of-fold score stays as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fb3.bundles.packing import Check
from fb3.bundles.tolerance import target_scale
from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error
from fb3.models.kernels.int8_linear import SHIFT, BiasCorrection, Scales, observe
from fb3.models.scorer import Scorer
from fb3.prediction.fold_prediction import encode, predict_fold
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.runs.checkpoint import drop_scales, load_fold, save_scales
from fb3.runs.run_folder import Member, check_known, training_essays
from fb3.runs.scores import TRUTH
from fb3.system.devices import Precision, cpu_has_int8, pick_precision
from fb3.system.file_names import ENCODER, OOF, fold_number
from fb3.system.progress import progress, say
from fb3.targets.metrics import rmse_columns
from fb3.tasks.build import build_task

ESSAYS = 32  # to measure on
TOLERANCE = 0.0005  # the out-of-fold MCRMSE may lose so much, for scores from 1 to 5; others in proportion


def calibrate(data: Path | None, essays: int = ESSAYS) -> Check:
    """A step for `write_bundle`: gives each packed fold the scales that inference on a CPU needs for int8.

    The out-of-fold essays are predicted once more, in int8. A fold whose score gets worse by more than the tolerance
    gets none, and that is said.

    Args:
        data: the folder with the train.csv of the runs; none: the one that each run recorded.
        essays: to measure on, for each fold, of those it was trained on.

    Returns:
        A function that takes the runs and the packed folder, and returns each fold's MCRMSE in int8 less the one
        in oof.csv.
    """

    def step(members: list[Member], packed: Path) -> dict[str, Any]:
        _check_wishes(members)
        found: dict[str, Any] = {}
        with progress("int8", sum(len(member.folds) for member in members)) as advance:
            for member in members:
                folder = packed / "runs" / member.name
                inside = Member(member.name, folder, member.recipe, [folder / fold.name for fold in member.folds])
                texts = training_essays(member.path, member, data)
                for position, fold in enumerate(inside.folds):
                    worse = _calibrate_fold(inside, position, texts, essays)
                    found[f"{member.name}/{fold.name}"] = round(worse, 5)
                    advance()
        return {"essays": essays, "worse": found}

    return step


def _check_wishes(members: list[Member]) -> None:
    """Refuses what would never compute in int8, here or later.

    Raises:
        Fb3Error: names the recipe's key, or the chip.
    """
    if not cpu_has_int8():
        raise Fb3Error("--int8: this CPU has no fast int8 instructions to measure with; pack elsewhere, or without")
    for member in members:
        wishes = member.recipe.predict
        for key, wish, fitting in (
            ("precision", wishes.precision, ("auto",)),
            ("backend", wishes.backend, ("auto", "torch")),
        ):
            if wish not in fitting:
                raise Fb3Error(
                    f"{member.path}: predict.{key}={wish} leaves no room for int8; set it to auto, or drop --int8"
                )


def _calibrate_fold(member: Member, position: int, texts: pd.DataFrame, essays: int) -> float:
    """Writes the scales of a fold, and takes them back where they cost too much; by how much its score is worse."""
    folder, name = member.folds[position], f"{member.name}/{member.folds[position].name}"
    identifier, columns = member.recipe.data.id_column, list(member.recipe.data.target_columns)
    truths = [TRUTH + column for column in columns]
    oof = read_numbers(member.path / OOF, identifier, [*columns, *truths])
    own = oof[oof["fold"] == fold_number(folder)]
    check_known(own[identifier], texts, member.path)
    others = texts[~texts.index.isin(own[identifier])]
    save_scales(folder, measure_scales(member, folder, others.sample(min(essays, len(others)), random_state=0)))
    ids, truth = own[identifier], own[truths].to_numpy()
    again = predict_fold(member, position, encode(member, texts.loc[ids]), ids.to_numpy(), "cpu", shown=False)
    before = rmse_columns(truth, own[columns].to_numpy()).mean()
    after = rmse_columns(truth, np.clip(again.values, member.recipe.task.minimum, member.recipe.task.maximum)).mean()
    if not after - before <= TOLERANCE * target_scale(member):
        drop_scales(folder)
        say(f"{name}: int8 costs {after - before:.4f} of its MCRMSE of {before:.4f}; it is packed without")
    return float(after - before)


def measure_scales(member: Member, folder: Path, essays: pd.DataFrame) -> Scales:
    """Scales of a fold, and the shift that its rounding asks for.

    Args:
        member: the run.
        folder: the fold's.
        essays: of those it was trained on, by id.

    Raises:
        Fb3Error: torch cannot compute it in int8 here.
    """
    task, ids = build_task(member.recipe), essays.index.to_numpy()
    encoded = encode(member, essays)

    def observed(scorer: Scorer, precision: Precision) -> tuple[Scales, Tensor]:
        return observe(scorer, lambda: predict(scorer, task, encoded, ids, precision=precision, shown=False))

    scales, exact = observed(load_fold(member.recipe, member.path / ENCODER, folder), "fp32")
    scorer = load_fold(member.recipe, member.path / ENCODER, folder)
    precision = pick_precision("auto", next(scorer.parameters()).device)
    lower_weights(scorer, precision, scales | {SHIFT: torch.zeros_like(exact)})
    if not isinstance(scorer.beside, BiasCorrection):
        raise Fb3Error(f"{folder}: --int8: cannot be computed so here; pack it without")
    _, rounded = observed(scorer, precision)
    return scales | {SHIFT: exact - rounded}
