"""A request to stop a training early: a signal, or the end of the time that it was given."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether to stop, and why: a signal came, or `seconds` from now are over; None: no limit."""

    def __init__(self, seconds: float | None = None) -> None:
        self.until = None if seconds is None else time.monotonic() + seconds
        self.signal = ""

    @property
    def reason(self) -> str:
        """Why to stop, in words; empty while there is no reason."""
        over = self.until is not None and time.monotonic() >= self.until
        return self.signal or ("the time is up" if over else "")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a request to stop after the step at hand; a second SIGINT stops at once."""
        if threading.current_thread() is not threading.main_thread():  # Python sets handlers only there
            yield
            return
        before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        # Not print: the signal may have interrupted another print, whose buffer cannot be entered twice.
        os.write(2, f"\n{self.signal}: saves after this step; once more stops at once\n".encode())
