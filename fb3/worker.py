"""One fold of a bundle on one device: loaded, predicted, and predicted again in fp32 where low precision overflows."""

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import torch

from fb3.bundle import Member
from fb3.checkpoint import load_fold
from fb3.ensemble import Predictions
from fb3.errors import Fb3Error
from fb3.essays import Encoded, tokenise
from fb3.layout import ENCODER
from fb3.models import load_tokenizer
from fb3.prediction import lower_weights, predict
from fb3.progress import say
from fb3.runtime import Precision, pick_precision
from fb3.tasks import build_task


def encode(member: Member, texts: list[str]) -> Encoded:
    """The texts as tokens of a run's encoder."""
    return tokenise(texts, *load_tokenizer(member.path / ENCODER), member.recipe.data)


def predict_fold(
    member: Member,
    fold: int,
    encoded: Encoded,
    ids: np.ndarray,
    device: str,
    *,
    rows: np.ndarray | None = None,
    seconds: float | None = None,
    precision: Precision | None = None,
    shown: bool = True,
) -> Predictions:
    """One fold's predictions, in this process.

    Args:
        member: the run.
        fold: position in `member.folds`.
        encoded, ids, rows: as in `predict`.
        device: where to compute.
        seconds: after these the essays left are given up.
        precision: of the encoder; none: the recipe's for inference, on this device.
        shown: False hides the progress.

    Raises:
        Fb3Error: a broken fold, or one that gives no number in fp32 either.
    """
    until = None if seconds is None else time.monotonic() + seconds
    folder, place = member.folds[fold], torch.device(device)
    name = f"{member.name}/{folder.name}"
    first = precision or _precision(member, place, name)
    for each in dict.fromkeys([first, "fp32"]):
        scorer = lower_weights(load_fold(member.recipe, member.path / ENCODER, folder).to(place), each)
        predictions = predict(
            scorer,
            build_task(member.recipe),
            encoded,
            ids,
            rows=rows,
            precision=each,
            token_budget=member.recipe.predict.token_budget,
            until=until,
            name=name,
            shown=shown,
        )
        bad = ~np.isfinite(predictions.values).all(1)
        if not bad.any():
            return predictions
        say(f"{name}: {bad.sum()} essays got no number in {each}, first {predictions.ids[bad][0]}")
    raise Fb3Error(f"{folder}: predicts NaN even in fp32; leave this fold out of the bundle")


def _precision(member: Member, device: torch.device, name: str) -> Precision:
    wish = member.recipe.predict.precision
    if wish == "fp16" and device.type == "cpu":
        say(f"{name}: predict.precision=fp16 is for GPUs; taking what is fast on this CPU")
        wish = "auto"
    return pick_precision(wish, device, "predict.precision")


class Workers:
    """Folds on one device in this process, or on several in a process each, which share the essays by tokens.

    Args:
        devices: such as ["cuda:0", "cuda:1"].
    """

    def __init__(self, devices: list[str]) -> None:
        self.devices = devices
        context = get_context("spawn")  # CUDA does not survive a fork
        self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in devices] if len(devices) > 1 else []

    def predict(
        self, member: Member, fold: int, encoded: Encoded, ids: np.ndarray, seconds: float | None
    ) -> Predictions:
        """One fold's predictions; see `predict_fold`. Essays that were not reached are left out."""
        if not self._pools:
            return predict_fold(member, fold, encoded, ids, self.devices[0], seconds=seconds)
        parts = share_by_tokens(encoded.lengths, len(self.devices))
        try:
            jobs = [
                pool.submit(
                    predict_fold, member, fold, encoded, ids, device, rows=part, seconds=seconds, shown=position == 0
                )
                for position, (pool, device, part) in enumerate(zip(self._pools, self.devices, parts, strict=True))
            ]
            done = [job.result() for job in jobs]
        except BrokenProcessPool:
            say(f"a process of {', '.join(self.devices)} died (out of memory?); going on with {self.devices[0]} alone")
            self.close()
            self.devices, self._pools = self.devices[:1], []
            return self.predict(member, fold, encoded, ids, seconds)
        values, found = np.concatenate([p.values for p in done]), np.concatenate([p.ids for p in done])
        return replace(done[0], values=values, ids=found)

    def close(self) -> None:
        """Ends the processes."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)


def share_by_tokens(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Rows for each of several devices, with nearly equal tokens: dealt out longest first, back and forth.

    Args:
        lengths: tokens of each essay, (N,).
        parts: devices.
    """
    turns = np.concatenate([np.arange(parts), np.arange(parts)[::-1]])
    owner = np.empty(len(lengths), np.int64)
    owner[np.argsort(-lengths, kind="stable")] = np.resize(turns, len(lengths))
    return [np.flatnonzero(owner == part) for part in range(parts)]
