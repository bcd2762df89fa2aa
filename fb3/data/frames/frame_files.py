"""Files with frames, by id: npz with offsets, zips of npy. Nothing is unpickled; a zip's arrays are read one by one."""

import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from fb3.errors import Fb3Error

_OPEN_FILES = 16  # files with frames that a process keeps open


class FrameFile(Protocol):
    """A file with the frames of some items. counts: frames by id. width: numbers of a frame."""

    counts: Mapping[str, int]
    width: int

    def read(self, identifier: str) -> np.ndarray:
        """The frames of an item, (F, D)."""


@lru_cache(_OPEN_FILES)
def open_frames(path: Path) -> FrameFile:
    """Opens a file with frames, once in a process.

    Raises:
        Fb3Error: it is broken, or of another form; says which.
    """
    try:
        return _Npz(path) if path.suffix == ".npz" else _Zip(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        form = "ids, offsets and features" if path.suffix == ".npz" else "{id}.npy for each item"
        raise Fb3Error(f"{path}: no file with frames ({error}); want {path.suffix} of {form} (data.frames)") from error


class _Npz:
    """ids (N,), offsets (N + 1,) and features (frames of all, D)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as arrays:
            ids, offsets = arrays["ids"].astype(str), arrays["offsets"].astype(np.int64)
            self.frames = arrays["features"]
        steps = np.diff(offsets)
        if len(offsets) != len(ids) + 1 or offsets[0] or (steps < 0).any() or offsets[-1] != len(self.frames):
            raise ValueError(f"offsets do not cut {len(self.frames)} features into {len(ids)} items")
        if len({*ids.tolist()}) < len(ids):
            raise ValueError("an id stands there twice")
        if self.frames.ndim != 2 or self.frames.dtype.kind != "f":
            raise ValueError(
                f"features are {self.frames.dtype} of {self.frames.ndim} dimensions, want floats (frames, width)"
            )
        self.width = self.frames.shape[1]
        self.begins = dict(zip(ids.tolist(), offsets[:-1].tolist(), strict=True))
        self.counts = dict(zip(ids.tolist(), steps.tolist(), strict=True))

    def read(self, identifier: str) -> np.ndarray:
        begin = self.begins[identifier]
        return self.frames[begin : begin + self.counts[identifier]]


class _Zip:
    """{id}.npy for each item, (F, D). The directory and the heads of the arrays are read at once, the arrays later."""

    def __init__(self, path: Path) -> None:
        self.path, self.archive = path, zipfile.ZipFile(path)
        self.counts, widths, self.members = {}, set[int](), {}
        for member in self.archive.namelist():
            if not member.endswith(".npy"):
                continue
            identifier = member.removesuffix(".npy").rpartition("/")[2]
            if identifier in self.members:
                raise ValueError(f"{identifier}.npy stands there twice")
            with self.archive.open(member) as stream:
                shape, kind = _head(stream)
            if len(shape) != 2 or kind != "f":
                raise ValueError(f"{member} is of shape {shape}, want floats (frames, width)")
            self.members[identifier], self.counts[identifier] = member, shape[0]
            widths.add(shape[1])
        if len(widths) != 1:
            raise ValueError(f"frames of {len(widths)} widths" if widths else "it holds no .npy")
        (self.width,) = widths

    def read(self, identifier: str) -> np.ndarray:
        with self.archive.open(self.members[identifier]) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


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


def _head(stream: IO[bytes]) -> tuple[tuple[int, ...], str]:
    """The shape and the kind of dtype of an array in npy form, without its numbers."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype.kind
