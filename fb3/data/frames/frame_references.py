"""The places of items' frames: each item's id looked up in the files that a recipe names."""

import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fb3.data.frames.frame_files import array_header, count_frames, open_frames, read_frames
from fb3.errors import Fb3Error
from fb3.recipe.frames import FramesSettings
from fb3.system.progress import say

if TYPE_CHECKING:
    from fb3.data.frames.picture_files import PictureFile


class FrameReference(NamedTuple):
    """The place of an item's frames, none of them where `count` is 0; the file is opened again in each process.

    With data.frames.encoder the file holds pictures, until `fb3.prediction.frame_vectors` puts their vectors in place.
    """

    file: Path
    identifier: str
    count: int

    def read(self) -> np.ndarray:
        """All frames of the item, (F, D) as they are stored."""
        return read_frames(self.file, self.identifier)


class _Known(NamedTuple):
    """The items of a file, and the function that counts an item's frames or pictures."""

    path: Path
    ids: Collection[str]
    count: Callable[[str], int]


def find_frames(identifiers: Sequence[str], settings: FramesSettings, folder: Path, some: bool) -> np.ndarray:
    """References to the frames of N items, (N,) objects.

    Args:
        identifiers: the items' ids.
        settings: names the files, and says whether they hold vectors or pictures.
        folder: holds them.
        some: whether one item at least must have frames.

    Raises:
        Fb3Error: no file is there, none knows any item, two differ in width or encoder, or both know an item.
    """
    paths = [folder / name for name in settings.files if (folder / name).exists()]
    if not paths:
        raise Fb3Error(
            f"{folder}: holds none of {list(settings.files)} (data.frames.files); say where the frames are, "
            "make vectors of pictures with `fb3 features`, or train a recipe of texts alone with data.frames=null"
        )
    files, found = (_pictures if settings.encoder else _vectors)(paths, folder), np.empty(len(identifiers), object)
    for row, identifier in enumerate(identifiers):
        where = [file for file in files if identifier in file.ids]
        if len(where) > 1:
            names = [file.path.name for file in where]
            raise Fb3Error(f"{folder}: {identifier} has frames in {names}; leave one out")
        count = where[0].count(identifier) if where else 0
        found[row] = FrameReference(where[0].path if where else paths[0], identifier, count)
    if len(found) and not any(reference.count for reference in found):
        words = f"{folder}: {[path.name for path in paths]} hold no frames of any item, such as {identifiers[0]}"
        if some:
            raise Fb3Error(words)
        say(f"WARNING: {words}")
    return found


def no_frames(identifiers: Sequence[str], settings: FramesSettings, folder: Path) -> np.ndarray:
    """References of N items that have no frames, (N,) objects."""
    found = np.empty(len(identifiers), object)
    for row, identifier in enumerate(identifiers):
        found[row] = FrameReference(folder / settings.files[0], identifier, 0)
    return found


def _vectors(paths: Sequence[Path], folder: Path) -> list[_Known]:
    files = [open_frames(path) for path in paths]
    if len(widths := {file.width for file in files}) > 1:
        raise Fb3Error(
            f"{folder}: {[path.name for path in paths]} hold frames of {sorted(widths)} numbers; want one width"
        )
    if len({file.made_by for file in files if file.made_by}) > 1:
        raise Fb3Error(f"{folder}: {[path.name for path in paths]} are of different image encoders; make them by one")
    return [_Known(path, file.ids, partial(count_frames, path)) for path, file in zip(paths, files, strict=True)]


def _pictures(paths: Sequence[Path], folder: Path) -> list[_Known]:
    files = open_pictures(paths)
    return [_Known(file.path, file.items, lambda identifier, file=file: len(file.items[identifier])) for file in files]


def open_pictures(paths: Sequence[Path]) -> "list[PictureFile]":
    """Opens files with pictures; an Fb3Error of `open_picture_files`, or where Pillow is not installed."""
    try:
        from fb3.data.frames.picture_files import open_picture_files
    except ImportError as error:
        raise Fb3Error(f"pictures need Pillow: {error}; pip install Pillow") from None
    return open_picture_files(paths)


def find_picture_files(folder: Path) -> list[Path]:
    """Every npz of a folder that holds uint8 `frames`; an Fb3Error where there is none."""
    if found := [path for path in sorted(folder.glob("*.npz")) if _holds_pictures(path)]:
        return found
    raise Fb3Error(f"{folder}: no npz of it holds uint8 `frames`; name pictures with --frames FILE_OR_FOLDER")


def _holds_pictures(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("frames.npy") as stream:
            return array_header(stream)[2] == np.uint8
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
