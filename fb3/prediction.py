"""The one inference loop, for out-of-fold and for test predictions."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from fb3.batches import collate, inference_batches, on_device
from fb3.ensemble import Predictions
from fb3.errors import Fb3Error
from fb3.models import Scorer
from fb3.models.int8 import Scales, quantise
from fb3.models.packed import pack_linears
from fb3.progress import progress, say
from fb3.runtime import Precision, out_of_memory
from fb3.tasks import Task
from fb3.tokens import Encoded

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOKEN_BUDGET = {"cpu": 4096}  # measured: larger batches fall out of a CPU's cache
_TOKEN_BUDGET_GPU = 16384


def lower_weights(scorer: Scorer, precision: Precision, scales: Scales | None = None) -> Scorer:
    """Casts the encoders' weights for inference and packs those on a CPU, in place; pooling and head stay float32.

    Args:
        scorer: as `load_fold` gives it.
        precision: of the encoders.
        scales: with them their linear layers are in int8, where that can be.
    """
    encoders = [tower.encoder.to(_DTYPE[precision]) for tower in scorer.towers().values()]
    if not (scales and quantise(scorer, scales)):
        for encoder in encoders:
            pack_linears(encoder)
    return scorer


def _autocast(scorer: Scorer, device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast, except where a CPU's weights are low already: there the plain low-precision pass is the faster one."""
    weights = next(scorer.encoder.parameters()).dtype
    if precision == "fp32" or (device.type == "cpu" and weights != torch.float32):
        return nullcontext()
    return torch.autocast(device.type, _DTYPE[precision])


@torch.inference_mode()
def predict(
    scorer: Scorer,
    task: Task,
    encoded: Encoded,
    ids: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    until: float | None = None,
    name: str = "",
    shown: bool = True,
) -> Predictions:
    """Predicts essays, longest first, and gives them back in the order of `rows`.

    Where memory runs out, the token budget is halved, and that is said.

    Args:
        scorer: on the device that computes; left in the mode (train or eval) in which it came.
        task: turns outputs into predictions.
        encoded: all essays' tokens.
        ids: all essays' ids, (N,).
        rows: which essays, none: all.
        precision: of the encoder.
        token_budget: tokens a batch, padding included; none: by device.
        until: no batch is begun after this time, by time.monotonic(); the essays left are not in the result.
        name: of the result, and of the progress bar.
        shown: False hides the progress.

    Returns:
        Unclipped predictions of `rows`, or of those that were reached.

    Raises:
        Fb3Error: memory does not suffice for one essay.
    """
    rows = np.arange(len(encoded.rows)) if rows is None else np.asarray(rows)
    device = next(scorer.parameters()).device
    budget = token_budget or _TOKEN_BUDGET.get(device.type, _TOKEN_BUDGET_GPU)
    values = np.full((len(encoded.rows), len(task.columns)), np.nan, np.float32)
    reached = np.zeros(len(encoded.rows), bool)
    batches = deque(inference_batches(encoded.costs, rows, budget))
    was_training = scorer.training
    scorer.eval()
    with progress(name or "predict", len(rows), shown) as advance, _autocast(scorer, device, precision):
        while batches and (until is None or time.monotonic() < until):
            batch_rows = batches[0]
            predicted = _predict_batch(scorer, task, encoded, batch_rows, device)
            if predicted is None:
                budget = _halved(budget, encoded.costs[batch_rows], name)
                batches = deque(inference_batches(encoded.costs, np.concatenate(batches), budget))
                continue
            values[batch_rows], reached[batch_rows] = predicted, True
            batches.popleft()
            advance(len(batch_rows))
    scorer.train(was_training)
    rows = rows[reached[rows]]
    return Predictions(np.asarray(ids)[rows], values[rows], task.columns, name)


def _predict_batch(
    scorer: Scorer, task: Task, encoded: Encoded, rows: np.ndarray, device: torch.device
) -> np.ndarray | None:
    """(B, K), or none where memory ran out; what the failed attempt held is free again by then."""
    try:
        batch = on_device(collate(encoded, rows), device)
        return task.predict(scorer, batch).float().cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _halved(budget: int, lengths: np.ndarray, name: str) -> int:
    """Half the budget, or less where a single essay overshot it."""
    longest = int(lengths.max())
    if len(lengths) == 1:
        raise Fb3Error(f"{name or 'predict'}: memory does not suffice for one essay of {longest} tokens")
    half = max(1, min(budget, int(longest * len(lengths))) // 2)
    say(f"{name or 'predict'}: out of memory with {len(lengths)} essays of {longest} tokens; now {half} tokens a batch")
    return half
