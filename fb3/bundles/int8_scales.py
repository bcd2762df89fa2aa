"""int8 scales of packed folds: measured on training essays, kept where the fold's out-of-fold score stays the same."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fb3.bundles.packed_folds import measure_folds, predict_again
from fb3.bundles.packing import PackingStep
from fb3.bundles.tolerance import target_scale
from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error
from fb3.models.kernels.int8_linear import SHIFT, BiasCorrection, Scales, observe
from fb3.models.scorer import Scorer
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.prediction.member_inputs import encode
from fb3.runs.checkpoint import drop_scales, load_fold, save_scales
from fb3.runs.run_folder import Member, check_known
from fb3.runs.scores import TRUTH
from fb3.system.devices import Precision, cpu_has_int8, pick_precision
from fb3.system.file_names import ENCODER, OOF, fold_number
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.tasks.build import build_task

ESSAYS = 32  # on which a fold's scales are measured
TOLERANCE = 0.0005  # largest loss of the out-of-fold score; where it is in the targets' units, for a range from 1 to 5


def calibrate(data: Path | None, essays: int = ESSAYS) -> PackingStep:
    """A step for `write_bundle`: gives each packed fold the scales that inference on a CPU needs for int8.

    The out-of-fold essays are predicted once more, in int8. A fold whose score gets worse by more than the tolerance
    gets no scales, with a message.

    Args:
        data: the folder with the runs' train.csv; None: the one that each run recorded.
        essays: how many of each fold's training essays the scales are measured on.

    Returns:
        A function that takes the runs and the packed folder, and returns for each fold its MCRMSE in int8 minus the
        one in oof.csv.
    """

    def step(members: list[Member], packed: Path) -> dict[str, Any]:
        def measure(_: Path, member: Member, position: int, texts: pd.DataFrame) -> float:
            return _calibrate_fold(member, position, texts, essays)

        members = [member for member in members if not member.recipe.estimator]
        _check_wishes(members)
        return {"essays": essays, "worse": measure_folds("int8", members, packed, data, measure)}

    return step


def _check_wishes(members: list[Member]) -> None:
    """Refuses recipes that never compute in int8, and a chip that is slow at it."""
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
    """Writes a fold's scales, deletes them where the score gets too much worse; returns by how much it is worse."""
    folder, name = member.folds[position], f"{member.name}/{member.folds[position].name}"
    target = target_of(member.recipe)
    identifier, columns = member.recipe.data.id_column, list(target.columns)
    truths = [TRUTH + column for column in columns]
    oof = read_numbers(member.path / OOF, identifier, [*columns, *truths])
    own = oof[oof["fold"] == fold_number(folder)]
    check_known(own[identifier], texts, member.path)
    others = texts[~texts.index.isin(own[identifier])]
    save_scales(folder, measure_scales(member, folder, others.sample(min(essays, len(others)), random_state=0)))
    ids, truth = own[identifier], own[truths].to_numpy()
    metric = target.metric
    before = target.score(truth, own[columns].to_numpy()).overall
    after = target.score(truth, predict_again(member, position, ids, texts, "cpu")).overall
    worse = after - before if metric.lower_is_better else before - after
    if not worse <= TOLERANCE * (target_scale(member) if metric.in_units else 1.0):
        drop_scales(folder)
        say(f"{name}: int8 costs {worse:.4f} of its {metric.title} of {before:.4f}; it is packed without")
    return worse


def measure_scales(member: Member, folder: Path, essays: pd.DataFrame) -> Scales:
    """A fold's scales, and the shift that makes up for its rounding.

    Args:
        member: the run.
        folder: the fold's folder.
        essays: some of the fold's training essays, by id.

    Raises:
        Fb3Error: torch cannot compute the fold in int8 here.
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
        raise Fb3Error(f"{folder}: --int8: torch cannot compute it here; pack it without")
    _, rounded = observed(scorer, precision)
    return scales | {SHIFT: exact - rounded}
