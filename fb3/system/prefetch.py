"""Work ahead: the next piece is made in a thread while the one before it is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Job], Made], jobs: Iterable[Job]) -> Iterator[Made]:
    """As `map` does, in the same order, in one thread that is one piece ahead.

    An error is raised where its piece would come. Closed early, it waits for the piece at hand and makes no other.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="fb3-ahead")
    try:
        coming: Future[Made] | None = None
        for job in jobs:
            ready, coming = coming, begun(pool, make, job)
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()
    finally:
        pool.shutdown(cancel_futures=True)


def begun(pool: ThreadPoolExecutor, make: Callable[[Job], Made], job: Job) -> Future[Made]:
    """A piece that is made in a thread, or at once where there is none to be had."""
    try:
        return pool.submit(make, job)
    except RuntimeError:
        done: Future[Made] = Future()
        try:
            done.set_result(make(job))
        except Exception as error:
            done.set_exception(error)
        return done
