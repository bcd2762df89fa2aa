"""Files with frames, by id: npz with offsets, zips of npy. Nothing is unpickled; a zip's arrays are read one by one."""

import json
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from fb3.errors import Fb3Error

PIXELS = "pixels"  # the kind of vector that is a picture's pixels
_OPEN_FILES = 16  # files with frames that a process keeps open


class FrameFile(Protocol):
    """A file with the frames of some items.

    ids: theirs. width: numbers of a frame. made_by: a hash of the image encoder that made them; empty where it is not
    told.
    """

    ids: Collection[str]
    width: int
    made_by: str

    def count(self, identifier: str) -> int:
        """The number of an item's frames."""

    def read(self, identifier: str) -> np.ndarray:
        """The frames of an item, (F, D)."""


@lru_cache(_OPEN_FILES)
def open_frames(path: Path) -> FrameFile:
    """Opens a file with frames, once in a process.

    Raises:
        Fb3Error: it is broken, or of another form; says which.
    """
    with _in_words(path):
        return _Npz(path) if path.suffix == ".npz" else _Zip(path)


def count_frames(path: Path, identifier: str) -> int:
    """The number of an item's frames, 0 where the file does not know it; an Fb3Error where the file is broken."""
    file = open_frames(path)
    with _in_words(path):
        return file.count(identifier) if identifier in file.ids else 0


def read_frames(path: Path, identifier: str) -> np.ndarray:
    """An item's frames, (F, D), none where the file does not know it; an Fb3Error where the file is broken."""
    file = open_frames(path)
    with _in_words(path):
        return file.read(identifier) if identifier in file.ids else np.zeros((0, file.width), np.float16)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        suffix = path.suffix or ".npz"
        form = "ids, offsets and features" if suffix == ".npz" else "{id}.npy for each item"
        raise Fb3Error(
            f"{path}: no file with frames ({error}); want {suffix} of {form} (data.frames.files); "
            "pictures want data.frames.encoder too"
        ) from error


class _Npz:
    """ids (N,), offsets (N + 1,) and features (frames of all, D); `encoder` says in JSON who made them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as arrays:
            ids, offsets = arrays["ids"].astype(str), arrays["offsets"].astype(np.int64)
            told = json.loads(str(arrays["encoder"])) if "encoder" in arrays else None
            pixels = bool(told) and told["vector"] == PIXELS
            self.frames = _mapped(path, "features.npy") if pixels else arrays["features"]
        # Settings of the processor are left out: versions of transformers write them in other words.
        self.made_by = f"{told['weights']} {told['vector']}" if told else ""
        self.ids = stretches(ids, offsets, len(self.frames), "features")
        if self.frames.ndim != 2 or self.frames.dtype.kind not in ("u" if pixels else "f"):
            raise ValueError(
                f"features are {self.frames.dtype} of {self.frames.ndim} dimensions, want floats (frames, width)"
            )
        self.width = self.frames.shape[1]

    def count(self, identifier: str) -> int:
        begin, end = self.ids[identifier]
        return end - begin

    def read(self, identifier: str) -> np.ndarray:
        return self.frames[slice(*self.ids[identifier])]


def _mapped(path: Path, member: str) -> np.ndarray:
    """An array of an npz, whose numbers are read from the disk as they are used."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        found = archive.getinfo(member)
        if found.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member} is compressed")
        file.seek(found.header_offset + 26)  # the lengths of the name and of what stands behind it, then both
        file.seek(found.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
        shape, columns_first, dtype = array_header(file)
        if columns_first:
            raise ValueError(f"{member} holds columns first")
        return np.memmap(path, dtype, "r", file.tell(), shape) if np.prod(shape) else np.zeros(shape, dtype)


class _Zip:
    """{id}.npy for each item, (F, D). An array's head is read when its frames are counted."""

    made_by = ""

    def __init__(self, path: Path) -> None:
        self.path, self.archive, self.ids = path, zipfile.ZipFile(path), dict[str, str]()
        for member in self.archive.namelist():
            if member.endswith(".npy"):
                identifier = member.removesuffix(".npy").rpartition("/")[2]
                if identifier in self.ids:
                    raise ValueError(f"{identifier}.npy stands there twice")
                self.ids[identifier] = member
        if not self.ids:
            raise ValueError("it holds no .npy")
        self.width = self._shape(next(iter(self.ids)))[1]

    def _shape(self, identifier: str) -> tuple[int, int]:
        with self.archive.open(self.ids[identifier]) as stream:
            shape, _, dtype = array_header(stream)
        if len(shape) != 2 or dtype.kind != "f":
            raise ValueError(f"{self.ids[identifier]} holds {dtype} of shape {shape}, want floats (frames, width)")
        return shape

    def count(self, identifier: str) -> int:
        count, width = self._shape(identifier)
        if width != self.width:
            raise ValueError(f"{self.ids[identifier]} holds frames of {width} numbers, others of {self.width}")
        return count

    def read(self, identifier: str) -> np.ndarray:
        with self.archive.open(self.ids[identifier]) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def stretches(ids: np.ndarray, offsets: np.ndarray, count: int, name: str) -> dict[str, tuple[int, int]]:
    """The begin and end of each item's frames; a ValueError where offsets do not cut the array into the items."""
    if len(offsets) != len(ids) + 1 or offsets[0] or (np.diff(offsets) < 0).any() or offsets[-1] != count:
        raise ValueError(f"offsets do not cut {count} {name} into {len(ids)} items")
    if len({*ids.tolist()}) < len(ids):
        raise ValueError("an id stands there twice")
    return dict(zip(ids.tolist(), zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True), strict=True))


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order (True: Fortran's) and type of an array, read from the start of its .npy."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def write_frames(path: Path, identifiers: Sequence[str], frames: Sequence[np.ndarray]) -> None:
    """Writes the frames (F, D) of each item in the form that the file's name says, as float16."""
    lowered = [each.astype(np.float16) for each in frames]
    if path.suffix == ".npz":
        offsets = np.cumsum([0, *map(len, lowered)])
        np.savez(path, ids=np.array(identifiers, str), offsets=offsets, features=np.concatenate(lowered))
        return
    with zipfile.ZipFile(path, "w") as archive:
        for identifier, each in zip(identifiers, lowered, strict=True):
            with archive.open(f"{identifier}.npy", "w") as stream:
                np.lib.format.write_array(stream, each, allow_pickle=False)
