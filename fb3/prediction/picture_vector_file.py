"""A file with vectors of pictures, as data.frames.files reads it; parts are kept, so that a killed command goes on."""

import json
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fb3.data.frames.picture_files import Picture
from fb3.errors import Fb3Error
from fb3.models.image_encoder import ImageEncoder
from fb3.models.picture_processor import PixelMaker
from fb3.prediction.picture_vectors import Vectors, picture_vectors
from fb3.system.disk_space import disk_full_errors
from fb3.system.files import atomic_file, delete_partial_files, read_json, write_json
from fb3.system.folder_lock import lock_folder
from fb3.system.progress import progress, say

_PART, _PART_SECONDS = 2000, 300.0  # pictures and time after which a part is saved
_TOLD = 20  # broken pictures that are told one by one
_PLAN = "plan.json"  # in the folder of parts: everything that decides them


class Written(NamedTuple):
    """words: a sentence about the file. missing: pictures for which time did not suffice. path: the file."""

    words: str
    missing: int
    path: Path


def write_picture_vectors(
    encoder: ImageEncoder | PixelMaker,
    items: Mapping[str, Sequence[Picture]],
    out: Path,
    *,
    name: str,
    digests: Sequence[str],
    some: bool = True,
    until: float = inf,
    anew: bool = False,
    cut_short: Path | None = None,
) -> Written:
    """Writes ids, offsets and features, as data.frames.files reads them, and `encoder`: JSON of how they were made.

    Parts are saved beside `out` as they come, and deleted at the end: a killed command goes on where it was. A second
    process waits for the first.

    Args:
        encoder: the image encoder, or in its place the maker of pixels for one that is trained.
        items: each item's pictures.
        out: the npz to write.
        name: the encoder's name, for the file.
        digests: hashes that pictures of another content, order or id change.
        some: whether one picture at least must be readable.
        until: the time.monotonic() after which no further batch is begun; pictures that are left then are missing in
            the file.
        anew: whether parts that are broken, or of another encoder, are deleted, as befits a cache.
        cut_short: the file to write instead where pictures are missing, so that no other process takes it for whole.

    Raises:
        Fb3Error: no picture can be read, or the parts there are broken, of another encoder or of other pictures.
    """
    folder, pictures = out.with_name(f"{out.name}.parts"), [each for of_item in items.values() for each in of_item]
    made_by = {"name": name, **encoder.description()}
    with lock_folder(folder, "fb3 features", wait=True), disk_full_errors(folder):
        if out.exists():
            return Written(f"{out}: another process has written it", 0, out)
        plan = {**made_by, "pictures": list(digests)}
        if anew and not _fits(folder, plan):
            for file in [*folder.glob("*.npz"), folder / _PLAN]:
                file.unlink(missing_ok=True)
        _begin(folder, plan)
        _compute(encoder, pictures, folder, until)
        parts = [(part.read, part.broken) for part in _saved(folder)]
        read = np.concatenate([np.zeros(0, bool), *(of_part for of_part, _ in parts)])
        broken = [line for _, lines in parts for line in lines]
        left, found = len(pictures) - len(read), int(read.sum())
        if some and not found:
            raise Fb3Error(f"{broken[0]}: no picture can be read, this one first; nothing is written")
        out = cut_short if left and cut_short else out
        counted = np.cumsum([0, *read, *[0] * left])
        offsets = counted[np.cumsum([0, *map(len, items.values())])]
        with atomic_file(out) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=np.array([*items], str), offsets=offsets, encoder=np.array(json.dumps(made_by)))
            file.flush()
            _append(temporary, encoder, found, (part.values for part in _saved(folder)))
        shutil.rmtree(folder)
    words = (
        f"{out}: {len(items)} items, {(np.diff(offsets) == 0).sum()} of them without frames; {found} vectors of "
        f"{encoder.width} numbers ({encoder.vector}); {len(broken)} pictures could not be read"
        + (f", and time did not suffice for {left}" if left else "")
    )
    return Written(words, left, out)


def _append(npz: Path, encoder: ImageEncoder | PixelMaker, count: int, parts: Iterator[np.ndarray]) -> None:
    """Adds `features` to an npz, part after part: the pixels of all pictures would not fit into memory."""
    dtype = np.lib.format.dtype_to_descr(np.dtype(encoder.dtype))
    head = {"descr": dtype, "fortran_order": False, "shape": (count, encoder.width)}
    with zipfile.ZipFile(npz, "a") as archive, archive.open("features.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, head)
        for values in parts:
            stream.write(np.ascontiguousarray(values).data)


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Refuses parts that were begun with another encoder or other pictures; writes down what decides new ones."""
    delete_partial_files(folder)
    path = folder / _PLAN
    if path.is_file() and (old := read_json(path)) != plan:
        others = [key for key in plan if old.get(key) != plan[key]]
        raise Fb3Error(f"{folder}: was begun with other {', '.join(others)}; delete it, or choose another --out")
    write_json(plan, path)


def _fits(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Whether parts can be gone on with."""
    try:
        return read_json(folder / _PLAN) == plan and all(len(part.read) for part in _saved(folder))
    except Fb3Error:
        return False


def _compute(encoder: ImageEncoder | PixelMaker, pictures: Sequence[Picture], folder: Path, until: float) -> None:
    """Computes and saves the vectors that no saved part holds yet."""
    done, new, told, saved_at = sum(len(part.read) for part in _saved(folder)), list[Vectors](), 0, time.monotonic()
    coming = closing(picture_vectors(encoder, pictures[done:]))
    with progress("pictures", len(pictures), done=done) as advance, coming as batches:
        for vectors in takewhile(lambda _: time.monotonic() < until, batches):
            for line in vectors.broken[: max(0, _TOLD - told)]:
                say(f"left out: {line}")
            told += len(vectors.broken)
            advance(len(vectors.read))
            new.append(vectors)
            if _count(new) >= _PART or time.monotonic() - saved_at >= _PART_SECONDS:
                _save(new, _part(folder, done))
                done, new, saved_at = done + _count(new), [], time.monotonic()
    if new:
        _save(new, _part(folder, done))


def _count(vectors: Sequence[Vectors]) -> int:
    return sum(len(each.read) for each in vectors)


def _save(vectors: Sequence[Vectors], path: Path) -> None:
    whole = _joined(vectors)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values=whole.values, read=whole.read, broken=np.array(whole.broken, str))


def _joined(vectors: Sequence[Vectors]) -> Vectors:
    values, read = np.concatenate([each.values for each in vectors]), np.concatenate([each.read for each in vectors])
    return Vectors(values, read, [line for each in vectors for line in each.broken])


def _saved(folder: Path) -> Iterator[Vectors]:
    """The saved parts, one after the other; each file has the number of its first picture."""
    done = 0
    while (path := _part(folder, done)).is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                part = Vectors(arrays["values"], arrays["read"], arrays["broken"].tolist())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise Fb3Error(f"{path}: broken ({error}); delete it, then its pictures are computed anew") from None
        done += len(part.read)
        yield part


def _part(folder: Path, first: int) -> Path:
    return folder / f"{first:012d}.npz"
