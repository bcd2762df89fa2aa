"""Free space on a disk, and one line of error where it runs out, whichever library was writing."""

import errno
import inspect
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from fb3.errors import DiskFull, Fb3Error, one_line

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Messages of a full disk from tokenizers and safetensors (Rust), SQLite and pip, whose errors carry no errno.
_FULL_IN_WORDS = re.compile(r"No space left on device|Disk quota exceeded|File too large|database or disk is full")
_TEMPORARY = re.compile(r"\.([^/\\]+)\.\d+\.part\b")  # the name under which a file is written before it is renamed
_MAKE_ROOM = "Make room, and run it again"
P, T = ParamSpec("P"), TypeVar("T")


def format_bytes(size: float) -> str:
    """A number of bytes, such as 90.1 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def cannot_write(path: Path, error: BaseException, need: int | None = None) -> Fb3Error:
    """The error for a path that cannot be written: a `DiskFull` with the free bytes, or one about an unreadable source.

    Args:
        path: the file or folder.
        error: an OSError, or an error that a library made of one.
        need: bytes, where they are known.
    """
    words = _FULL_IN_WORDS.search(str(error))
    reason = getattr(error, "strerror", None) or (words[0] if words else one_line(error, 300))
    path = Path(_TEMPORARY.sub(r"\1", str(path)))
    if not is_disk_full(error):
        return Fb3Error(unreadable_source(path, error) or f"{path}: cannot be written ({reason})")
    folder = _nearest_folder(path)
    needs = "" if need is None else f"it needs {format_bytes(need)}, "
    free = format_bytes(shutil.disk_usage(folder).free)
    return DiskFull(f"{path}: cannot be written ({reason}): {needs}{folder} has {free}. {_MAKE_ROOM}")


def unreadable_source(target: Path, error: BaseException) -> str | None:
    """Names the source that could not be read while `target` was written; None where the writing itself failed."""
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # copytree lists one error a file
        name, copy, reason = error.args[0][0]
        name = name if str(name) in str(reason) else copy
    if not isinstance(name, (str, os.PathLike)):
        return None
    for own in (target, Path(os.path.realpath(target))):
        temporary = any(part.startswith(f".{own.name}.") for part in Path(name).parts)
        if temporary or own.is_relative_to(name) or Path(name).is_relative_to(own):
            return None
    return f"{name}: cannot be read ({reason})"


def _nearest_folder(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if os.path.isdir(place))  # noqa: PTH112, never raises


def free_bytes(folder: Path) -> float:
    """Bytes that can be written to a folder; infinitely many where its mount does not say."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full, by its errno or by a library's message."""
    return getattr(error, "errno", None) in _FULL or bool(_FULL_IN_WORDS.search(str(error)))


@contextmanager
def disk_full_errors(path: str | Path, need: int | None = None) -> Iterator[None]:
    """Turns any library's error about a full disk into a `DiskFull` of one line; other errors pass unchanged.

    Args:
        path: the folder or file that is written.
        need: bytes, where they are known.

    Raises:
        DiskFull: names the file where the error knows it, else `path`.
    """
    try:
        yield
    except Fb3Error:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause and not is_disk_full(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        name = getattr(cause, "filename2", None) or getattr(cause, "filename", None)  # a copy names its target second
        raise cannot_write(Path(name if isinstance(name, str) else path), cause, need) from None


def raises_disk_full(argument: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function with `disk_full_errors` for the folder in one argument; None: the temporary folder."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            with disk_full_errors(signature.bind(*args, **kwargs).arguments.get(argument) or tempfile.gettempdir()):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def check_free_space(path: Path, need: int) -> None:
    """Refuses work that a disk cannot hold, before it begins: a `DiskFull` says how much it needs."""
    folder = _nearest_folder(path)
    if (free := free_bytes(folder)) < need:
        raise DiskFull(f"{path}: it needs {format_bytes(need)}, {folder} has {format_bytes(free)}. {_MAKE_ROOM}")
