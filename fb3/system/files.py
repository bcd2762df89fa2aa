"""Reading and writing files: UTF-8 with clear errors, atomic writes, hashes."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fb3.errors import Fb3Error
from fb3.system.compressed_files import COMPRESSED, unpacking
from fb3.system.disk_space import cannot_write, format_bytes

if TYPE_CHECKING:
    import pandas as pd

# Largest text file that is read, in bytes: parsing takes ten to thirty times as much memory. fb3's own largest text,
# the manifest of ten thousand files, has 2 MB.
LARGEST = 32 * 2**20
# Cells that need quotes: separators and quotes, white space at an end, which some readers drop, a byte order mark.
_QUOTED = re.compile(r'[",\r\n]|^[\s\ufeff]|\s$')
# First bytes of well-known formats that are not UTF-8, each with its mend.
_OTHER_FORMS = {
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
    b"PK\x03\x04": "it is a zip archive or a workbook; unpack it, or save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "it is compressed (gzip); unpack it",
    b"BZh": "it is compressed (bzip2); unpack it",
    b"\xfd7zXZ": "it is compressed (xz); unpack it",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd); unpack it",
}
_COMPRESSED = {*COMPRESSED, ".bz2", ".xz", ".zst"}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex; for a folder, that of its files' names and hashes."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = (f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output_path(path: str | Path, *, plain: bool = False) -> Path:
    """Checks that a path can be the place of an output file.

    Args:
        path: the path; a trailing slash makes it a folder.
        plain: whether the file is written more than once, which a device or a pipe cannot be.

    Raises:
        Fb3Error: a folder, a name with a suffix of compressed files, or something that cannot be written to.
    """
    place, mode = Path(path), _mode(Path(path))
    if stat.S_ISDIR(mode) or str(path).endswith(("/", os.sep)):
        raise Fb3Error(f"{path}: is a folder; give a file in it")
    if place.suffix.lower() in _COMPRESSED:
        raise Fb3Error(
            f"{path}: no compressed file is written; give {place.with_suffix('')} and compress it afterwards"
        )
    stream = stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
    if mode and not stat.S_ISREG(mode) and (plain or not stream):
        raise Fb3Error(f"{path}: not a plain file{', and it is written more than once' * plain}; give a file")
    return place


def _mode(path: Path) -> int:
    """The mode of a file, or of a link's target; 0 where nothing is there."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file to write, renamed to `path` at the end: a reader sees the old file or the whole new one.

    Where `path` is a link, its target is replaced and the link stays. A file keeps its permissions, and its other hard
    links keep their content. A device or a pipe gets the bytes at the end.

    Raises:
        Fb3Error: `path` cannot be written, or `check_output_path` refuses it.
    """
    path = check_output_path(path)
    mode, target = _mode(path), Path(os.path.realpath(path))
    stream = bool(mode) and not stat.S_ISREG(mode)
    folder = Path(tempfile.mkdtemp()) if stream else target.parent
    temporary = folder / f".{target.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        if stream:
            with temporary.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if mode:
            with suppress(OSError):  # a file system without permissions
                temporary.chmod(mode & 0o777)
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        temporary.replace(target)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if stream:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill, renamed to `path` once all of it is on the disk; `path` must not exist."""
    path = Path(os.path.realpath(path))  # a link to a folder that does not exist yet stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for part in (*temporary.iterdir(), temporary):
            _fsync(part)
        temporary.rename(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def delete_partial_files(folder: Path) -> None:
    """Deletes the temporary files of killed processes; no other process may be writing in the folder."""
    for part in list(folder.rglob(".*.part")):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def link_or_copy(source: Path, to: Path) -> None:
    """Makes a hard link, or a copy where the file system has no links."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def write_text(text: str, path: str | Path) -> None:
    """Writes a text as UTF-8, its line ends unchanged."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(content: Any, path: str | Path) -> None:
    """Writes JSON, one key per line."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def write_csv(table: "pd.DataFrame", path: str | Path, *, header: bool = True) -> None:
    """Writes a table without its index: UTF-8, each cell as its text, an absent one empty, quoted only where needed.

    Without `header`, the line of the columns' names is left out.

    It does not use Python's csv module, nor pandas, which builds on it: whether a lone carriage return is quoted, and
    whether a NUL can be written, depends on the version of Python.
    """
    columns = [[_cell(str(name)), *_cells(table.iloc[:, number])] for number, name in enumerate(table.columns)]
    if len(columns) == 1:
        columns = [[cell or '""' for cell in columns[0]]]  # an empty line is no row
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        lines = zip(*columns, strict=True)
        file.writelines(",".join(row) + "\n" for row in (lines if header else islice(lines, 1, None)))


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
        path: a regular file; a pipe or a device, which may never end, is refused.
        largest: the most bytes it may have.

    Raises:
        Fb3Error: it cannot be read, is too large, or is in another encoding.
    """
    _check_regular(path, largest)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        known = (words for start, words in _OTHER_FORMS.items() if content.startswith(start))
        mend = next(known, "save it as UTF-8")
        raise Fb3Error(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); {mend}") from None


@contextmanager
def reading_utf8(path: Path, largest: int = LARGEST) -> Iterator[TextIO]:
    """Opens a UTF-8 file to be read line by line, line ends unchanged, so that it is never in memory as a whole.

    A file with the suffix .gz or .zip is unpacked while it is read; `largest` counts its unpacked bytes.

    Raises:
        Fb3Error: see `read_utf8` and `unpacking`; also raised while the lines are read.
    """
    _check_regular(path, largest)
    packed = path.suffix.lower() in COMPRESSED
    try:
        with unpacking(path, largest) if packed else path.open("rb") as content:
            yield io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        with unpacking(path, largest) if packed else path.open("rb") as content:
            _decoded(content.read(), path)  # raises with the byte counted from the file's start
        raise


def _check_regular(path: Path, largest: int) -> None:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise Fb3Error(f"{path}: cannot be read (not a plain file)")
    if found.st_size > largest:
        size = f"has {format_bytes(found.st_size)}, more than the {format_bytes(largest)} that are read"
        raise Fb3Error(f"{path}: {size}; is it the right file?")


def _unreadable(path: Path, error: Exception) -> Fb3Error:
    return Fb3Error(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")


def read_json(path: Path, wanted: Mapping[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """Reads a JSON mapping.

    Args:
        path: the file.
        wanted: required keys, each with the types its value may have.

    Raises:
        Fb3Error: the file is missing, broken or no mapping, or lacks a key, which the message names.
    """
    text = read_utf8(path)
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():  # half a surrogate pair, which neither a UTF-8 file nor a path can hold
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Fb3Error(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise Fb3Error(f"{path}: want a mapping, got {type(content).__name__}; write it anew, or copy it again")
    for key, kinds in (wanted or {}).items():
        if not isinstance(content.get(key), kinds) or (isinstance(content[key], bool) and kinds is not bool):
            raise Fb3Error(f"{path}: {key} is missing, or of the wrong type; write it anew, or copy it again")
    return content
