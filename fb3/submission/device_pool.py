"""One fold of a bundle on one device in this process, or shared among several devices with a process each."""

import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.predictions import Predictions
from fb3.runs.run_folder import Member
from fb3.system.progress import say

_GRACE = 60.0  # seconds after the deadline in which a process may end its last batch; then it is killed


class DevicePool:
    """Predicts folds on one device in this process, or on several, such as cuda:0 and cuda:1, in a process each.

    The processes share the essays by tokens.
    """

    def __init__(self, devices: list[str]) -> None:
        self.devices = devices
        self._pools = [_pool(len(devices)) for _ in devices] if len(devices) > 1 else []

    def predict(
        self,
        member: Member,
        fold: int,
        encoded: Encoded | FeatureInputs,
        ids: np.ndarray,
        until: float,
        again: bool = True,
    ) -> Predictions:
        """One fold's predictions, see `predict_fold`. Essays that the deadline left unread are not among them.

        When a process dies, its device is given up and the fold begins again on the others. When one fails, a fresh
        process replaces it, because a GPU's context may be spoilt for good, and with `again` the fold begins again.
        """
        if not self._pools:
            return predict_fold(member, fold, encoded, ids, self.devices[0], until=until)
        shares = share_by_tokens(encoded.total_lengths, len(self.devices))
        jobs = [self._submit(n, member, fold, encoded, ids, rows=rows, until=until) for n, rows in enumerate(shares)]
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

    def _submit(self, number: int, *job: Any, **settings: Any) -> Future:
        try:
            device, shown = self.devices[number], number == 0
            return self._pools[number].submit(predict_fold, *job, device, shown=shown, **settings)
        except BrokenProcessPool as error:  # the process died since the last fold
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _restart(self, number: int) -> None:
        _kill(self._pools[number])
        self._pools[number] = _pool(len(self.devices))

    def _give_up(self, dead: list[int]) -> None:
        """Goes on without the devices of these numbers; where none is left, on the first in this process."""
        for number in dead:
            _kill(self._pools[number])
        lost = [self.devices[number] for number in dead]
        self.devices = [d for number, d in enumerate(self.devices) if number not in dead] or self.devices[:1]
        self._pools = [pool for number, pool in enumerate(self._pools) if number not in dead]
        say(f"WARNING: the process of {', '.join(lost)} died (out of memory?); going on with {', '.join(self.devices)}")


def _pool(processes: int) -> ProcessPoolExecutor:
    """One process, spawned because CUDA does not survive a fork."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_share_cores, initargs=(processes,))


def _share_cores(processes: int) -> None:
    """Shares the cores: processes that each take all of them slow one another down several times over."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _kill(pool: ProcessPoolExecutor) -> None:
    """Ends a process even while it works, so that it frees its device's memory."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def share_by_tokens(lengths: np.ndarray, devices: int) -> list[np.ndarray]:
    """Rows for each device, with nearly equal tokens: dealt out longest first, to the devices back and forth.

    Args:
        lengths: tokens of each essay, (N,).
        devices: how many.
    """
    back_and_forth = np.concatenate([np.arange(devices), np.arange(devices)[::-1]])
    owner = np.empty(len(lengths), np.int64)
    owner[np.argsort(-lengths, kind="stable")] = np.resize(back_and_forth, len(lengths))
    return [np.flatnonzero(owner == device) for device in range(devices)]
