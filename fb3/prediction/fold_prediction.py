"""One fold of a run on one device: from its files to predictions."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fb3.data.tokens import Encoded, encode_essays
from fb3.errors import Fb3Error, one_line
from fb3.models.dry_run import keeps_fp32
from fb3.prediction.backends.choose import pick_backend, use_backend
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.prediction.predictions import Predictions
from fb3.runs.checkpoint import load_fold, read_scales
from fb3.runs.run_folder import Member
from fb3.system.devices import Precision, cpu_has_int8, emulates_bf16, keep_freed_memory, pick_precision
from fb3.system.file_names import ENCODER, INT8
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.tasks.build import build_task


def encode(member: Member, essays: pd.DataFrame) -> Encoded:
    """The essays as tokens of a run's encoder."""
    return encode_essays(essays, member.path / ENCODER, member.recipe.data)


def predict_fold(
    member: Member,
    fold: int,
    encoded: Encoded,
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
        encoded, ids, rows, until, shown: see `predict`.
        precision: the encoder's; none: the recipe's for inference on this device, where a CPU computes linear layers in
            int8 if the fold was packed with scales.
    """
    keep_freed_memory()
    folder, place = member.folds[fold], torch.device(device)
    name = f"{member.name}/{folder.name}"
    wanted = precision or _precision(member, place, name)
    rows = np.arange(len(ids)) if rows is None else rows
    position = {identifier: row for row, identifier in enumerate(ids)}
    values = np.full((len(ids), len(target_of(member.recipe).columns)), np.nan, np.float32)
    left = rows
    backend, _ = pick_backend(member.recipe.predict.backend, place)
    scales = None if precision or backend != "torch" else _scales(member, folder, place, name)
    attempts, exact = [(wanted, backend, scales)], ("fp32", "torch", None)
    if attempts[0] != exact:
        attempts.append(exact)
    for lowered, backend, scales in attempts:
        scorer = load_fold(member.recipe, member.path / ENCODER, folder).to(place)
        if lowered == "fp16" and any(keeps_fp32(tower.encoder) for tower in scorer.towers().values()):
            say(f"{name}: {type(scorer.encoder).__name__} is not made for fp16, whose range it exceeds; taking fp32")
            lowered = "fp32"
        try:
            by_backend = use_backend(scorer, backend, lowered, name)
            part = predict(
                scorer if by_backend else lower_weights(scorer, lowered, scales),
                build_task(member.recipe),
                encoded,
                ids,
                rows=left,
                precision="fp32" if by_backend else lowered,  # with a backend, torch computes only pooling and head
                token_budget=member.recipe.predict.token_budget,
                until=until,
                name=name,
                shown=shown,
            )
        except Exception as error:
            if isinstance(error, Fb3Error) or (lowered, backend, scales) == exact:
                raise
            say(f"{name}: {lowered} fails ({one_line(repr(error))}); again in fp32")
            continue
        predicted = np.array([position[identifier] for identifier in part.ids], np.int64)
        values[predicted] = part.values
        left = predicted[~np.isfinite(part.values).all(1)]
        if not len(left):
            reached = rows[np.isfinite(values[rows]).all(1)]
            return Predictions(ids[reached], values[reached], part.columns, name)
        say(f"{name}: {len(left)} essays got no number in {lowered}, first {ids[left[0]]}")
    raise Fb3Error(f"{folder}: predicts NaN even in fp32; leave this fold out of the bundle")


def _precision(member: Member, device: torch.device, name: str) -> Precision:
    wish = member.recipe.predict.precision
    if wish == "fp16" and device.type == "cpu":
        say(f"{name}: predict.precision=fp16 is for GPUs; taking what is fast on this CPU")
        wish = "auto"
    if wish == "bf16" and emulates_bf16(device):
        say(f"{name}: predict.precision=bf16, but {device} has no bf16 and emulates it slowly; taking fp16")
        wish = "auto"
    return pick_precision(wish, device, "predict.precision")


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
