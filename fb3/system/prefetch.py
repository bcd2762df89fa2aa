"""Work that a thread begins before its result is wanted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


def in_background(make: Callable[[Job], Made], jobs: Sequence[Job]) -> list[Future[Made]]:
    """Begins with `make(job)` for each job, one after the other in a thread of its own.

    The thread is a daemon: work that hangs, on a disk for example, does not keep the process from ending. Where no
    thread can be had, all the work is done at once in this one.

    Returns:
        One future a job. `result` raises the job's error; a job that is cancelled before it begins is skipped.
    """
    futures: list[Future[Made]] = [Future() for _ in jobs]

    def work() -> None:
        for job, future in zip(jobs, futures, strict=True):
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(make(job))
                except BaseException as error:  # otherwise the caller would wait for ever
                    future.set_exception(error)

    try:
        Thread(target=work, name="fb3-background", daemon=True).start()
    except RuntimeError:
        work()
    return futures


def prefetch(make: Callable[[Job], Made], jobs: Iterable[Job]) -> Iterator[Made]:
    """`map(make, jobs)`, where a thread makes the next piece while the caller uses the one before it.

    An error is raised where its piece would come. Closed early, it waits for the piece at hand and makes no other.
    """
    coming: list[Future[Made]] = []
    try:
        for job in jobs:
            ready = [future.result() for future in coming]
            coming = in_background(make, [job])
            yield from ready
        yield from (future.result() for future in coming)
    finally:
        wait(coming)
