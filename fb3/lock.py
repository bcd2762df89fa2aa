"""One process at a time in a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.layout import LOCK


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """Keeps a second process out of a folder. The kernel holds the lock (flock), so that a killed process has none.

    Args:
        folder: made where it is not there.
        command: named in the error, such as "fb3 train".

    Raises:
        Fb3Error: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip()
            raise Fb3Error(
                f"{folder}: another {command} is at work there{f' ({who})' if who else ''}; wait for it, or choose "
                "another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
