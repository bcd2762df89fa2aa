"""Files written whole or not at all, and their hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fb3.errors import Fb3Error
from fb3.system.disk_space import cannot_write, in_words

if TYPE_CHECKING:
    import pandas as pd

# Bytes up to which a text is read: a file from elsewhere may be of any size, and becomes ten to thirty times as large
# in memory. Of what fb3 writes, a manifest of ten thousand files has 2 MB.
LARGEST = 32 * 2**20
# Beside what ends a cell: a space at an end, which some readers drop, and what looks like a byte order mark.
_QUOTED = re.compile(r'[",\r\n]|^[\s\ufeff]|\s$')
# First bytes of files that are no UTF-8, and what to say of them.
_OTHER_FORMS = {
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
    b"PK\x03\x04": "it is a zip archive or a workbook; unpack it, or save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "it is compressed (gzip); unpack it",
    b"BZh": "it is compressed (bzip2); unpack it",
    b"\xfd7zXZ": "it is compressed (xz); unpack it",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd); unpack it",
}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zip", ".zst"}


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_place(path: str | Path, *, plain: bool = False) -> Path:
    """The place of a file to write.

    Args:
        path: a trailing slash counts.
        plain: it is written more than once, so that a device or a pipe will not do.

    Raises:
        Fb3Error: a folder, a name that promises a compressed file, or nothing that can be written to.
    """
    place, kind = Path(path), _kind(Path(path))
    if stat.S_ISDIR(kind) or str(path).endswith(("/", os.sep)):
        raise Fb3Error(f"{path}: is a folder; give a file in it")
    if place.suffix.lower() in _COMPRESSED:
        raise Fb3Error(
            f"{path}: no compressed file is written; give {place.with_suffix('')} and compress it afterwards"
        )
    through = stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)
    if kind and not stat.S_ISREG(kind) and (plain or not through):
        raise Fb3Error(f"{path}: not a plain file{', and it is written more than once' * plain}; give a file")
    return place


def _kind(path: Path) -> int:
    """The mode of a file, or of what a link leads to; 0 where nothing is there."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place to write to, moved to `path` at the end: a reader sees the old file or the whole new one.

    Where `path` is a link, its target is replaced and the link stays; a file keeps its permissions, its other hard
    links keep their content. A device or a pipe gets the bytes at the end.

    Raises:
        Fb3Error: the place cannot be written, or `check_place` refuses it.
    """
    path = check_place(path)
    kind, target = _kind(path), Path(os.path.realpath(path))
    through = bool(kind) and not stat.S_ISREG(kind)
    folder = Path(tempfile.mkdtemp()) if through else target.parent
    aside = folder / f".{target.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield aside
        if through:
            with aside.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        if kind:
            with suppress(OSError):  # a file system that has no permissions
                aside.chmod(kind & 0o777)
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        aside.replace(target)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if through:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to fill, moved to `path`, which must not be there, once all of it is on the disk."""
    path = Path(os.path.realpath(path))  # a link to a place that is still to be made stays one
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


def write_text(text: str, path: str | Path) -> None:
    """Writes a UTF-8 text with the line ends it has."""
    with replacing(path) as aside:
        aside.write_bytes(text.encode("utf-8"))


def write_json(content: Any, path: str | Path) -> None:
    """Writes JSON, one key a line."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def write_csv(table: "pd.DataFrame", path: str | Path) -> None:
    """Writes a table without its index: UTF-8, each cell as its text, an absent one empty, quoted where it must be.

    By hand: of Python's csv module, and of pandas, which uses it, it depends on the version whether a lone carriage
    return is quoted and a NUL can be written.
    """
    columns = [[_cell(str(name)), *_cells(table.iloc[:, number])] for number, name in enumerate(table.columns)]
    if len(columns) == 1:
        columns = [[cell or '""' for cell in columns[0]]]  # an empty line is no row
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))


def _cells(column: "pd.Series") -> list[str]:
    values, absent = column.to_numpy(), column.isna().to_numpy()
    texts = map(_cell, map(str, values)) if values.dtype == object else values.astype(str).tolist()
    return ["" if gone else text for text, gone in zip(texts, absent, strict=True)]


def _cell(text: str) -> str:
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if _QUOTED.search(text) else text


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
        known = (words for start, words in _OTHER_FORMS.items() if content.startswith(start))
        mend = next(known, "save it as UTF-8")
        raise Fb3Error(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); {mend}") from None


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
