"""One process at a time in a folder."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.system.file_names import LOCK

_SHOWN = 200  # characters of what another process wrote


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """Keeps a second process out of a folder. The kernel holds the lock (flock), so that a killed process has none.

    Args:
        folder: made where it is not there, and removed again where nothing came into it.
        command: named in the error, such as "fb3 train".

    Raises:
        Fb3Error: there is one.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fb3Error(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        # No link: in a folder from elsewhere it would have its target emptied.
        number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        file = os.fdopen(number, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise Fb3Error(f"{folder / LOCK}: cannot be opened ({error.strerror or error}); delete it") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read(_SHOWN).strip()
            raise Fb3Error(
                f"{folder}: another {command} is at work there{f' ({who})' if who else ''}; wait for it, or choose "
                "another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if new and [path.name for path in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder, ignore_errors=True)
