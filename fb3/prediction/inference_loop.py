"""The inference loop, the same for out-of-fold and for test predictions."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial

import numpy as np
import torch

from fb3.data.batches import Batch, collate, inference_batches, on_device, pinned
from fb3.data.tokens import Encoded
from fb3.models.kernels.deberta import precompute_position_tables
from fb3.models.kernels.int8_linear import Scales, quantise
from fb3.models.kernels.packed_linear import pack_linears
from fb3.models.scorer import Scorer
from fb3.prediction.predictions import Predictions
from fb3.prediction.token_budget import Budget, open_budget
from fb3.system.devices import Precision, within_memory
from fb3.system.prefetch import prefetch
from fb3.system.progress import progress
from fb3.tasks.base import Task

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_AHEAD = {"cuda": 1}  # batches begun before one is fetched; a CPU computes at once and waits for none
_Result = Callable[[], np.ndarray | None]


def lower_weights(scorer: Scorer, precision: Precision, scales: Scales | None = None) -> Scorer:
    """Prepares a scorer with final weights for inference, in place.

    Casts the encoders of a scorer from `load_fold`, already on its device, to the precision that `predict` gets too;
    packs the weights on a CPU for its matrix kernel, or with scales makes linear layers int8 where they can be; and
    projects a DeBERTa's position tables once for all batches. Pooling and head stay float32. Not to be trained again.
    """
    encoders = [tower.encoder.to(_DTYPE[precision]) for tower in scorer.towers().values()]
    if not (scales and quantise(scorer, scales)):
        for encoder in encoders:
            pack_linears(encoder)
    with _autocast(scorer, next(scorer.parameters()).device, precision):
        for encoder in encoders:
            precompute_position_tables(encoder)
    return scorer


def _autocast(scorer: Scorer, device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast; none for a CPU with lowered weights, where a plain pass in their precision is faster."""
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
    """Predicts essays, longest first; unclipped predictions of `rows`, in their order, as far as the time allows.

    If memory runs out, the token budget is halved, which is said; an Fb3Error where it does not suffice for one essay,
    or one window of it. An essay whose windows exceed the budget is computed in parts.

    Args:
        scorer: on the device that computes; its mode (train or eval) is restored.
        task: turns outputs into predictions.
        encoded, ids: all essays' tokens, and their ids, (N,).
        rows: numbers of the essays to predict; none: all.
        precision: the encoder's.
        token_budget: tokens a batch, padding included; none: by device, see `fb3.prediction.token_budget`.
        until: the time.monotonic(), which a machine's processes share, after which no batch begins; essays left then
            are not in the result. On a GPU two batches may have begun by then.
        name: the result's, and the progress bar's.
        shown: False hides the progress.
    """
    rows = np.arange(len(encoded.rows)) if rows is None else np.asarray(rows)
    device = next(scorer.parameters()).device
    budget = open_budget(scorer, device, precision, int(encoded.total_lengths[rows].max(initial=0)), token_budget)
    values = np.full((len(encoded.rows), len(task.target.columns)), np.nan, np.float32)
    reached = np.zeros(len(encoded.rows), bool)
    was_training, title, left = scorer.training, name or "predict", rows
    scorer.eval()
    with progress(title, len(rows), shown) as advance, _autocast(scorer, device, precision):
        while len(left) and not _time_is_up(until):
            _limit_windows(scorer, budget.tokens)
            with closing(_predict_batches(scorer, task, encoded, left, budget, device, until)) as batches:
                for batch_rows, predicted in batches:
                    if predicted is None:
                        budget.halve(encoded.total_lengths[batch_rows], title, _window(encoded))
                        break
                    values[batch_rows], reached[batch_rows] = predicted, True
                    advance(len(batch_rows))
            left = rows[~reached[rows]]
    scorer.train(was_training)
    _limit_windows(scorer, None)
    rows = rows[reached[rows]]
    return Predictions(np.asarray(ids)[rows], values[rows], task.target.columns, name)


def _limit_windows(scorer: Scorer, tokens: int | None) -> None:
    """Sets how many tokens of a single essay's windows are computed at once; none: all."""
    for tower in scorer.towers().values():
        tower.most_tokens = tokens


def _window(encoded: Encoded) -> int | None:
    return encoded.splitter.length if encoded.splitter else None


def _time_is_up(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _predict_batches(
    scorer: Scorer,
    task: Task,
    encoded: Encoded,
    rows: np.ndarray,
    budget: Budget,
    device: torch.device,
    until: float | None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows (B,) and predictions (B, K) of batch after batch; no predictions where memory ran out.

    On a GPU a batch is collated while the one before it computes, and begun before that one is fetched: neither
    waits for the other. Ends when the time is up, and after a batch by which the budget is measured.
    """
    plan = inference_batches(encoded.total_lengths, rows, budget.tokens)[: 1 if budget.measures else None]
    ahead, begun = _AHEAD.get(device.type, 0), deque[tuple[np.ndarray, _Result]]()
    make = partial(_collated, encoded, device)
    with closing(prefetch(make, plan) if ahead else (make(batch_rows) for batch_rows in plan)) as batches:
        for batch_rows in plan:
            if _time_is_up(until):
                break
            lengths = encoded.total_lengths[batch_rows]
            budget.begin()
            result = within_memory(lambda: _begin(scorer, task, next(batches), device), device)
            begun.append((batch_rows, result or _failed))
            if result is None:
                break
            computed = int(lengths.max()) * len(lengths)
            budget.end(min(computed, budget.tokens) if encoded.splitter else computed)
            if len(begun) > ahead:
                done, result = begun.popleft()
                yield done, within_memory(result, device)
        for done, result in begun:
            yield done, within_memory(result, device)


def _collated(encoded: Encoded, device: torch.device, rows: np.ndarray) -> Batch:
    batch = collate(encoded, rows)
    return pinned(batch) if device.type == "cuda" else batch


def _begin(scorer: Scorer, task: Task, batch: Batch, device: torch.device) -> _Result:
    """Begins a batch and returns a function that waits for its predictions, (B, K).

    The copy to the host is queued at once, right behind this batch: queued later, it would wait for the next one too.
    """
    predicted = task.predict(scorer, on_device(batch, device)).float()
    if device.type != "cuda":
        return predicted.cpu().numpy
    host, copied = predicted.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def _failed() -> None:
    """Stands for the result of a batch for which memory did not suffice."""
