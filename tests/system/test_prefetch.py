import threading
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.system.prefetch import in_background, prefetch


def no_thread_is_left():
    for thread in threading.enumerate():
        if thread.name == "fb3-background":
            thread.join(10)
    return not [thread for thread in threading.enumerate() if thread.name == "fb3-background"]


@pytest.fixture
def threadless(monkeypatch):
    def refuses(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)


@given(st.lists(st.integers()))
def test_it_is_map_in_other_threads_one_piece_at_a_time(jobs):
    alone = threading.Lock()

    def make(job):
        assert alone.acquire(blocking=False)
        assert threading.current_thread() is not threading.main_thread()
        alone.release()
        return job, job * 2

    assert list(prefetch(make, jobs)) == [(job, job * 2) for job in jobs]
    assert no_thread_is_left()


def test_a_piece_is_made_while_the_one_before_it_is_used_and_no_more():
    made = [threading.Event() for _ in range(4)]
    with closing(prefetch(lambda job: made[job].set() or job, range(4))) as pieces:
        assert next(pieces) == 0
        assert made[1].wait(10), "nobody has asked for it yet"
        time.sleep(0.05)
        assert not made[2].is_set()
        assert next(pieces) == 1
        assert made[2].wait(10)
        assert not made[3].is_set()
    assert not made[3].is_set()
    assert no_thread_is_left()


class OfItsOwn(MemoryError):
    pass


def check_errors():
    def make(job):
        if job == 2:
            raise OfItsOwn(job)
        return job

    pieces = prefetch(make, range(5))
    assert [next(pieces), next(pieces)] == [0, 1]
    with pytest.raises(OfItsOwn):
        next(pieces)
    assert list(pieces) == []
    assert no_thread_is_left()


def test_an_error_comes_in_its_turn_as_it_was_and_ends_the_work():
    check_errors()


def test_an_error_comes_in_its_turn_where_no_thread_can_be_had(threadless):
    check_errors()


def test_work_in_the_background_is_done_in_order_by_one_daemon():
    seen, may_end = [], threading.Event()

    def make(job):
        seen.append((job, threading.current_thread()))
        may_end.wait(10)
        if job == 1:
            raise SystemExit("no plain Exception")
        return job

    first, second, third, cancelled = in_background(make, [0, 1, 2, 3])
    assert cancelled.cancel()
    may_end.set()
    assert (first.result(10), third.result(10)) == (0, 2)
    with pytest.raises(SystemExit):
        second.result(10)
    assert [job for job, _ in seen] == [0, 1, 2]
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1].daemon


def test_work_is_done_at_once_where_no_thread_can_be_had(threadless):
    futures = in_background(abs, [-1, 2])
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [1, 2]
