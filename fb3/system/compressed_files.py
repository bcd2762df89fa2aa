"""Compressed files: found in a plain file's place, and read without unpacking them to the disk."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

from fb3.errors import Fb3Error, one_line
from fb3.system.disk_space import format_bytes

COMPRESSED = (".zip", ".gz")
_TABLES = {".csv", ".tsv", ".txt", ".vec", ".json", ".jsonl"}


def stored_file(path: Path) -> Path:
    """The file itself, or where it is absent its compressed form beside it, such as train.csv.zip."""
    forms = [f"{path}{suffix}" for suffix in ("", *COMPRESSED)]
    return next((Path(form) for form in forms if os.path.isfile(form)), path)  # noqa: PTH113 - never raises


@contextmanager
def unpacking(path: Path, largest: int) -> Iterator[BinaryIO]:
    """The bytes of a .gz file, or of the only table in a .zip file.

    Args:
        path: the file.
        largest: the most bytes that it may have unpacked.

    Raises:
        Fb3Error: broken, encrypted, larger, or no single table in it; also raised while the bytes are read.
    """
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                yield io.BufferedReader(_Limited(stream, path, largest), 2**16)
        else:
            with ZipFile(path) as archive, archive.open(_only_table(archive, path, largest)) as stream:
                yield stream
    except (OSError, EOFError, zlib.error, BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Fb3Error(f"{path}: cannot be unpacked ({one_line(error)}); download it again, or unpack it") from None


def _only_table(archive: ZipFile, path: Path, largest: int) -> ZipInfo:
    members = [member for member in archive.infolist() if not member.is_dir()]
    members = [member for member in members if not member.filename.startswith("__MACOSX/")]  # added by macOS
    tables = [member for member in members if PurePosixPath(member.filename).suffix.lower() in _TABLES]
    if len(tables) != 1:
        names = [member.filename for member in members][:20]
        raise Fb3Error(f"{path}: holds {len(tables)} tables, want one; unpack it and name one in data.files: {names}")
    if tables[0].file_size > largest:
        raise too_large(path, largest)
    return tables[0]


class _Limited(io.RawIOBase):
    """The bytes of a stream, which says only while it is read how long it is; too many are an Fb3Error."""

    def __init__(self, stream: io.BufferedIOBase, path: Path, largest: int) -> None:
        self._stream, self._path, self._largest, self._left = stream, path, largest, largest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self._stream.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise too_large(self._path, self._largest)
        return count


def too_large(path: Path, largest: int) -> Fb3Error:
    """The error for a file whose content is larger than what is read."""
    return Fb3Error(f"{path}: has more than the {format_bytes(largest)} that are read; is it the right file?")
