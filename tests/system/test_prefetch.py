import threading
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.system.prefetch import made_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fb3-ahead")]


@given(st.lists(st.integers()))
def test_it_is_map_in_one_thread_of_its_own(jobs):
    seen = set()

    def make(job):
        seen.add(threading.current_thread().name)
        return job, job * 2

    assert list(made_ahead(make, jobs)) == [(job, job * 2) for job in jobs]
    assert len(seen) == min(1, len(jobs))
    assert threading.current_thread().name not in seen
    assert not threads()


def test_a_piece_is_made_while_the_one_before_it_is_used_and_no_more():
    made = [threading.Event() for _ in range(4)]
    with closing(made_ahead(lambda job: made[job].set() or job, range(4))) as pieces:
        assert next(pieces) == 0
        assert made[1].wait(10), "nobody has asked for it yet"
        time.sleep(0.05)
        assert not made[2].is_set()
        assert next(pieces) == 1
        assert made[2].wait(10)
        assert not made[3].is_set()
    assert not made[3].is_set()
    assert not threads()


@pytest.mark.parametrize("threadless", [False, True])
def test_an_error_comes_in_its_turn_as_it_was_and_ends_the_thread(threadless, monkeypatch):
    class OfItsOwn(MemoryError):
        pass

    def make(job):
        if job == 2:
            raise OfItsOwn(job)
        return job

    def refuses(self):
        raise RuntimeError("can't start new thread")

    if threadless:
        monkeypatch.setattr(threading.Thread, "start", refuses)
    pieces = made_ahead(make, range(5))
    assert [next(pieces), next(pieces)] == [0, 1]
    with pytest.raises(OfItsOwn):
        next(pieces)
    assert list(pieces) == []
    assert not threads()
