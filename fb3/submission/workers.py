"""One fold of a bundle on one device, in this process or in one of its own."""

import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np
import torch

from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.predictions import Predictions
from fb3.runs.run_folder import Member
from fb3.system.progress import say

_GRACE = 60.0  # seconds after the deadline in which a process may end its last batch; then it is killed


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
