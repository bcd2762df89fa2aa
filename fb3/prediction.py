"""The one inference loop, for out-of-fold and for test predictions."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from fb3.batches import collate, inference_batches, on_device
from fb3.budget import open_budget
from fb3.ensemble import Predictions
from fb3.models import Scorer
from fb3.models.packed import pack_linears
from fb3.progress import progress
from fb3.runtime import Precision, out_of_memory
from fb3.tasks import Task
from fb3.tokens import Encoded

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def lower_weights(scorer: Scorer, precision: Precision) -> Scorer:
    """Casts the encoders' weights for inference and packs those on a CPU, in place; pooling and head stay float32."""
    for tower in scorer.towers().values():
        pack_linears(tower.encoder.to(_DTYPE[precision]))
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
        token_budget: tokens a batch, padding included; none: by device, see `fb3.budget`.
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
    budget = open_budget(scorer, device, precision, int(encoded.costs[rows].max(initial=0)), token_budget)
    values = np.full((len(encoded.rows), len(task.columns)), np.nan, np.float32)
    reached = np.zeros(len(encoded.rows), bool)
    batches = deque(inference_batches(encoded.costs, rows, budget.tokens))
    was_training, title = scorer.training, name or "predict"
    scorer.eval()
    with progress(title, len(rows), shown) as advance, _autocast(scorer, device, precision):
        while batches and (until is None or time.monotonic() < until):
            batch_rows, planned = batches[0], budget.tokens
            lengths = encoded.costs[batch_rows]
            budget.begin()
            predicted = _predict_batch(scorer, task, encoded, batch_rows, device)
            if predicted is None:
                budget.halve(lengths, title)
            else:
                budget.end(int(lengths.max()) * len(lengths))
                values[batch_rows], reached[batch_rows] = predicted, True
                batches.popleft()
                advance(len(batch_rows))
            if batches and budget.tokens != planned:
                batches = deque(inference_batches(encoded.costs, np.concatenate(batches), budget.tokens))
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
