"""Room on a disk: how much there is, and one line where it is lacking, whichever library was writing."""

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

from fb3.errors import Fb3Error, NoRoom

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Words of tokenizers and safetensors (Rust), SQLite and pip for it.
_FULL_IN_WORDS = re.compile(r"No space left on device|Disk quota exceeded|File too large|database or disk is full")
_ASIDE = re.compile(r"\.([^/\\]+)\.\d+\.part\b")  # the place beside a place, until it is moved there
_MAKE_ROOM = "Make room, and run it again"
P, T = ParamSpec("P"), TypeVar("T")


def in_words(size: float) -> str:
    """A number of bytes, such as 90.1 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def cannot_write(path: Path, error: BaseException, need: int | None = None) -> Fb3Error:
    """The error where a file or folder cannot be written; where room is lacking, how much there is; where it is a
    source that could not be read for it, that one.

    Args:
        path: the file or folder.
        error: an OSError, or what a library made of one.
        need: bytes, where they are known.
    """
    words = _FULL_IN_WORDS.search(str(error))
    reason = getattr(error, "strerror", None) or (words[0] if words else " ".join(str(error).split())[:300])
    path = Path(_ASIDE.sub(r"\1", str(path)))
    if not lacks_room(error):
        return Fb3Error(unread(path, error) or f"{path}: cannot be written ({reason})")
    there = _nearest_folder(path)
    needs = "" if need is None else f"it needs {in_words(need)}, "
    free = in_words(shutil.disk_usage(there).free)
    return NoRoom(f"{path}: cannot be written ({reason}): {needs}{there} has {free}. {_MAKE_ROOM}")


def unread(place: Path, error: BaseException) -> str | None:
    """Words about the source that could not be read while `place` was written; none where writing failed."""
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # copytree lists one error a file
        name, target, reason = error.args[0][0]
        name = name if str(name) in str(reason) else target
    if not isinstance(name, (str, os.PathLike)):
        return None
    for own in (place, Path(os.path.realpath(place))):
        aside = any(part.startswith(f".{own.name}.") for part in Path(name).parts)  # where it is written first
        if aside or own.is_relative_to(name) or Path(name).is_relative_to(own):
            return None
    return f"{name}: cannot be read ({reason})"


def _nearest_folder(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if os.path.isdir(place))  # noqa: PTH112, never raises


def free_room(folder: Path) -> float:
    """Bytes that can be written there; infinitely many where a mount does not tell."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


def lacks_room(error: BaseException) -> bool:
    """Whether a disk or a quota is full, as an OSError says it, or a library whose writer is not Python's."""
    return getattr(error, "errno", None) in _FULL or bool(_FULL_IN_WORDS.search(str(error)))


@contextmanager
def room(path: str | Path, need: int | None = None) -> Iterator[None]:
    """Says in one line where a full disk ends the work in a folder, whichever library was writing.

    Args:
        path: the folder, or the file.
        need: bytes, where they are known.

    Raises:
        NoRoom: naming the file where the error knows it, else `path`.
    """
    try:
        yield
    except Fb3Error:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause and not lacks_room(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        name = getattr(cause, "filename2", None) or getattr(cause, "filename", None)  # a copy names its target second
        raise cannot_write(Path(name if isinstance(name, str) else path), cause, need) from None


def in_room(argument: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Puts a function's whole work into `room`, with the folder in one of its arguments; where that is none, the
    system's temporary one."""

    def told(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> T:
            with room(signature.bind(*args, **kwargs).arguments.get(argument) or tempfile.gettempdir()):
                return function(*args, **kwargs)

        return inside

    return told


def check_room(path: Path, need: int) -> None:
    """Refuses work whose end a disk cannot hold, before it begins.

    Raises:
        NoRoom: saying how much it needs.
    """
    there = _nearest_folder(path)
    if (free := free_room(there)) < need:
        raise NoRoom(f"{path}: it needs {in_words(need)}, {there} has {in_words(free)}. {_MAKE_ROOM}")
