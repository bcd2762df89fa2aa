"""Files written whole or not at all, and their hashes."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fb3.errors import Fb3Error

if TYPE_CHECKING:
    import pandas as pd

# Bytes up to which a text is read: a file from elsewhere may be of any size, and becomes ten to thirty times as large
# in memory. Of what fb3 writes, a manifest of ten thousand files has 2 MB.
LARGEST = 32 * 2**20


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place beside `path` to write to, moved to `path` at the end: a reader sees the old file or the whole new one.

    Raises:
        Fb3Error: the place cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise Fb3Error(unread(path, error) or f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def unread(place: Path, error: OSError) -> str | None:
    """Words about the source that could not be read while `place` was written; none where writing failed."""
    name, reason = error.filename, error.strerror
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of copytree, for each file
        name, target, reason = error.args[0][0]
        name = name if str(name) in str(reason) else target
    own = name is None or place.is_relative_to(name) or Path(name).is_relative_to(place)
    if own or any(part.startswith(f".{place.name}.") for part in Path(name).parts):  # where it is written first
        return None
    return f"{name}: cannot be read ({reason})"


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to fill, moved to `path`, which must not be there, once all of it is on the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for part in (*aside.iterdir(), aside):
            _to_disk(part)
        aside.rename(path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # its folders cannot be opened
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path) -> None:
    """Deletes what killed processes left half written; nobody else may be at work in the folder."""
    for part in list(folder.rglob(".*.part")):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def link_or_copy(source: Path, to: Path) -> None:
    """The same file in a second place, without its bytes where the file system can do that."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def in_words(size: float) -> str:
    """A number of bytes, such as 90.1 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def write_text(text: str, path: str | Path) -> None:
    """Writes a UTF-8 text with the line ends it has."""
    with replacing(path) as aside:
        aside.write_bytes(text.encode("utf-8"))


def write_json(content: Any, path: str | Path) -> None:
    """Writes JSON, one key a line."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def write_csv(table: "pd.DataFrame", path: str | Path) -> None:
    """Writes a table without its index."""
    with replacing(path) as aside:
        table.to_csv(aside, index=False, lineterminator="\n", encoding="utf-8")


def read_utf8(path: Path, largest: int = LARGEST) -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: a plain file: a pipe or a device could be read without end.
        largest: bytes that it may have.

    Raises:
        Fb3Error: it cannot be read, is too large, or is in another encoding.
    """
    _check_plain(path, largest)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise Fb3Error(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); save it as UTF-8") from None


@contextmanager
def reading_utf8(path: Path, largest: int = LARGEST) -> Iterator[TextIO]:
    """The same, line by line with the line ends as they stand: never is the whole of it in memory.

    Raises:
        Fb3Error: as `read_utf8`, also while the lines are read.
    """
    _check_plain(path, largest)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        read_utf8(path, largest)  # counts from the file's first byte, not from the last that was read
        raise


def _check_plain(path: Path, largest: int) -> None:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise Fb3Error(f"{path}: cannot be read (not a plain file)")
    if found.st_size > largest:
        size = f"{in_words(found.st_size)}, of such a file at most {in_words(largest)} are read"
        raise Fb3Error(f"{path}: {size}; is it the right one?")


def _unreadable(path: Path, error: Exception) -> Fb3Error:
    return Fb3Error(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")


def read_json(path: Path, wanted: Mapping[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """Reads a JSON mapping.

    Args:
        path: the file.
        wanted: keys that must be there, with the types of their values.

    Raises:
        Fb3Error: missing, broken, no mapping, or without one of the keys; names it.
    """
    text = read_utf8(path)
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():  # half a pair, which no UTF-8 file and no path can hold
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Fb3Error(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise Fb3Error(f"{path}: want a mapping, got {type(content).__name__}; write it anew, or copy it again")
    for key, kinds in (wanted or {}).items():
        if not isinstance(content.get(key), kinds) or (isinstance(content[key], bool) and kinds is not bool):
            raise Fb3Error(f"{path}: {key} is missing, or of the wrong form; write it anew, or copy it again")
    return content
