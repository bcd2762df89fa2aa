"""One process at a time in a folder.

The filelock package would not do. One of its versions in the competition's images empties the lock file before it has
the lock, so that no message could name the process at work. On a file system without flock all versions fall back to a
plain file, and then a process killed on another machine keeps everyone out.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.system.file_names import LOCK

_SHOWN = 200  # characters shown of what another process wrote into the lock file


@contextmanager
def lock_folder(folder: Path, command: str, *, wait: bool = False) -> Iterator[None]:
    """Keeps a second process out of a folder.

    The kernel holds the lock (flock) as long as the process lives, so a killed process keeps nobody out. The lock file
    stays: it only says which process is at work, or was.

    Args:
        folder: made if it is missing, and removed again if nothing came into it.
        command: named in the error, such as "fb3 train".
        wait: whether to wait for another process.

    Raises:
        Fb3Error: another process is at work there, or the folder or its lock file cannot be written.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fb3Error(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    # O_NOFOLLOW: opening a stranger's link would empty its target. O_NONBLOCK: opening a pipe would wait.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.fdopen(os.open(folder / LOCK, flags, 0o666), "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise Fb3Error(f"{folder / LOCK}: cannot be opened ({error.strerror or error}); delete it") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
            if new and folder.exists() and [path.name for path in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder, ignore_errors=True)
