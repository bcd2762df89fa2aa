"""One fold of a bundle on one device, in this process or in one of its own."""

import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fb3.bundles.bundle import Member
from fb3.data.tokenizer import encode_essays
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.dry_run import keeps_fp32
from fb3.prediction.backends.choose import pick_backend, use_backend
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.prediction.predictions import Predictions
from fb3.runs.checkpoint import load_fold, read_scales
from fb3.system.file_names import ENCODER, INT8
from fb3.system.kaggle import Precision, cpu_has_int8, emulates_bf16, keep_freed_memory, pick_precision
from fb3.system.progress import say
from fb3.tasks.build import build_task

_GRACE = 60.0  # seconds after the deadline in which a process may end its last batch; then it is killed


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
    """One fold's predictions, in this process; where low precision fails, or makes no number, again in fp32.

    Args:
        member: the run.
        fold: position in `member.folds`.
        encoded, ids, rows: as in `predict`.
        device: where to compute.
        until: by time.monotonic(), which all processes of a machine share; the essays left then are given up.
        precision: of the encoder; none: the recipe's for inference, on this device, and on a CPU its linear layers in
            int8 where the fold was packed with scales.
        shown: False hides the progress.

    Raises:
        Fb3Error: a broken fold, or one that gives no number in fp32 either.
    """
    keep_freed_memory()
    folder, place = member.folds[fold], torch.device(device)
    name = f"{member.name}/{folder.name}"
    first = precision or _precision(member, place, name)
    rows = np.arange(len(ids)) if rows is None else rows
    position = {identifier: row for row, identifier in enumerate(ids)}
    values = np.full((len(ids), len(member.recipe.data.target_columns)), np.nan, np.float32)
    left = rows
    backend, _ = pick_backend(member.recipe.predict.backend, place)
    scales = None if precision or backend != "torch" else _scales(member, folder, place, name)
    ways, last = [(first, backend, scales)], ("fp32", "torch", None)
    if ways[0] != last:
        ways.append(last)
    for each, computes, in_int8 in ways:
        scorer = load_fold(member.recipe, member.path / ENCODER, folder).to(place)
        if each == "fp16" and any(keeps_fp32(tower.encoder) for tower in scorer.towers().values()):
            say(f"{name}: {type(scorer.encoder).__name__} is not made for fp16, whose range it leaves; taking fp32")
            each = "fp32"
        try:
            backed = use_backend(scorer, computes, each, name)
            part = predict(
                scorer if backed else lower_weights(scorer, each, in_int8),
                build_task(member.recipe),
                encoded,
                ids,
                rows=left,
                precision="fp32" if backed else each,  # with a backend, torch computes pooling and head alone
                token_budget=member.recipe.predict.token_budget,
                until=until,
                name=name,
                shown=shown,
            )
        except Exception as error:
            if isinstance(error, Fb3Error) or (each, computes, in_int8) == last:
                raise
            say(f"{name}: {each} fails ({' '.join(repr(error).split())[:200]}); again in fp32")
            continue
        at = np.array([position[identifier] for identifier in part.ids], np.int64)
        values[at] = part.values
        left = at[~np.isfinite(part.values).all(1)]
        if not len(left):
            reached = rows[np.isfinite(values[rows]).all(1)]
            return Predictions(ids[reached], values[reached], part.columns, name)
        say(f"{name}: {len(left)} essays got no number in {each}, first {ids[left[0]]}")
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
    """Those for int8, where a fold was packed with them, nothing else is wished, and the chip is fast at it."""
    wanted = device.type == "cpu" and member.recipe.predict.precision == "auto" and cpu_has_int8()
    if not wanted or not (folder / INT8).is_file():
        return None
    try:
        return read_scales(folder)
    except (Fb3Error, OSError) as error:
        say(f"{name}: not in int8 ({error})")
        return None


class Workers:
    """Folds on one device in this process, or on several in a process each, which share the essays by tokens.

    Args:
        devices: such as ["cuda:0", "cuda:1"].
    """

    def __init__(self, devices: list[str]) -> None:
        self.devices = devices
        self._pools = [_pool(len(devices)) for _ in devices] if len(devices) > 1 else []

    def predict(
        self, member: Member, fold: int, encoded: Encoded, ids: np.ndarray, until: float, again: bool = True
    ) -> Predictions:
        """One fold's predictions; see `predict_fold`. Essays that were not reached are left out.

        Where a process dies, its device is given up and the fold begun again on the others; where one fails, it is
        replaced by a fresh one, because a GPU's context may be spoilt for good, and with `again` the fold begun again.
        """
        if not self._pools:
            return predict_fold(member, fold, encoded, ids, self.devices[0], until=until)
        jobs = []
        parts = share_by_tokens(encoded.costs, len(self.devices))
        for number, (device, part) in enumerate(zip(self.devices, parts, strict=True)):
            jobs.append(self._submit(number, member, fold, encoded, ids, device, part, until))
        done, dead, failure = [], [], None
        for number, job in enumerate(jobs):
            try:
                done.append(job.result(timeout=max(0.0, until - time.monotonic()) + _GRACE))
            except BrokenProcessPool:
                dead.append(number)
            except TimeoutError:
                self._restart(number)
                say(f"{self.devices[number]} did not answer at the deadline and was stopped")
            except Exception as error:
                failure = error
                self._restart(number)
        if dead:
            self._give_up(dead)
            return self.predict(member, fold, encoded, ids, until, again)
        if failure is not None:
            if isinstance(failure, Fb3Error) or not again:
                raise failure
            say(f"{member.name}/{member.folds[fold].name}: {failure!r}; once more, in a fresh process")
            return self.predict(member, fold, encoded, ids, until, again=False)
        if not done:
            raise Fb3Error("no device answered in time")
        values, found = np.concatenate([p.values for p in done]), np.concatenate([p.ids for p in done])
        return Predictions(found, values, done[0].columns, done[0].name)

    def close(self) -> None:
        """Ends the processes."""
        for pool in self._pools:
            _kill(pool)

    def _submit(
        self,
        number: int,
        member: Member,
        fold: int,
        encoded: Encoded,
        ids: np.ndarray,
        device: str,
        rows: np.ndarray,
        until: float,
    ) -> Future:
        try:
            return self._pools[number].submit(
                predict_fold, member, fold, encoded, ids, device, rows=rows, until=until, shown=number == 0
            )
        except BrokenProcessPool as error:  # it died since the last fold
            job: Future = Future()
            job.set_exception(error)
            return job

    def _restart(self, number: int) -> None:
        _kill(self._pools[number])
        self._pools[number] = _pool(len(self.devices))

    def _give_up(self, dead: list[int]) -> None:
        """Goes on without some devices; without any, in this process on the first."""
        for number in dead:
            _kill(self._pools[number])
        lost = [self.devices[number] for number in dead]
        self.devices = [d for number, d in enumerate(self.devices) if number not in dead] or self.devices[:1]
        self._pools = [pool for number, pool in enumerate(self._pools) if number not in dead]
        say(f"WARNING: the process of {', '.join(lost)} died (out of memory?); going on with {', '.join(self.devices)}")


def _pool(processes: int) -> ProcessPoolExecutor:
    """A process of its own; spawned, because CUDA does not survive a fork."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_share_cores, initargs=(processes,))


def _share_cores(processes: int) -> None:
    """Two processes that each take all cores slow one another down several times over."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _kill(pool: ProcessPoolExecutor) -> None:
    """Ends a process even while it works: it holds memory of its device."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
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
