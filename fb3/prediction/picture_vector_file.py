"""A file with vectors of pictures, as data.frames.files reads it; parts are kept, so that a killed command goes on."""

import json
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fb3.data.frames.picture_files import Picture, PictureFile
from fb3.errors import Fb3Error
from fb3.models.image_encoder import ImageEncoder
from fb3.prediction.picture_vectors import Vectors, picture_vectors
from fb3.system.devices import pick_device
from fb3.system.disk_space import disk_full_errors
from fb3.system.files import atomic_file, delete_partial_files, read_json, write_json
from fb3.system.folder_lock import lock_folder
from fb3.system.progress import progress, say

_PART, _PART_SECONDS = 2000, 300.0  # pictures and time after which a part is saved
_TOLD = 20  # broken pictures that are told one by one
_PLAN = "plan.json"  # in the folder of parts: everything that decides them


def write_picture_vectors(backbone: str, files: Sequence[PictureFile], out: Path) -> None:
    """Writes ids, offsets and features, as data.frames.files reads them, and `encoder`: JSON of how they were made.

    Parts are saved beside `out` as they come, and deleted at the end: a killed command goes on where it was.

    Args:
        backbone: the image encoder's folder, or its name on the hub.
        files: hold the pictures; no two know the same item.
        out: the npz to write, which does not exist.

    Raises:
        Fb3Error: the encoder cannot be used, no picture can be read, or the parts there are of another encoder or of
            other pictures.
    """
    encoder, folder = ImageEncoder(backbone, pick_device()), out.with_name(f"{out.name}.parts")
    made_by = {"name": Path(backbone).name, **encoder.description()}
    with lock_folder(folder, "fb3 features"), disk_full_errors(folder):
        _begin(folder, {**made_by, "pictures": [file.digest() for file in files]})
        _compute(encoder, files, folder)
        values, read, broken = _joined(list(_saved(folder)))
        if not len(values):
            raise Fb3Error(f"{broken[0]}: no picture can be read, this one first; nothing is written")
        ids, counts = zip(*[(each, len(places)) for file in files for each, places in file.items.items()], strict=True)
        offsets = np.cumsum([0, *read])[np.cumsum([0, *counts])]
        with atomic_file(out) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=np.array(ids), offsets=offsets, features=values, encoder=np.array(json.dumps(made_by)))
    shutil.rmtree(folder)
    say(
        f"{out}: {len(ids)} items, {(np.diff(offsets) == 0).sum()} of them without frames; {len(values)} vectors of "
        f"{encoder.width} numbers ({encoder.vector}); {len(broken)} pictures could not be read"
    )


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Refuses parts that were begun with another encoder or other pictures; writes down what decides new ones."""
    delete_partial_files(folder)
    path = folder / _PLAN
    if path.is_file() and (old := read_json(path)) != plan:
        others = [key for key in plan if old.get(key) != plan[key]]
        raise Fb3Error(f"{folder}: was begun with other {', '.join(others)}; delete it, or choose another --out")
    write_json(plan, path)


def _compute(encoder: ImageEncoder, files: Sequence[PictureFile], folder: Path) -> None:
    """Computes and saves the vectors that no saved part holds yet."""
    pictures = [Picture(file, place) for file in files for places in file.items.values() for place in places]
    done, new, told, saved_at = sum(len(part.read) for part in _saved(folder)), list[Vectors](), 0, time.monotonic()
    with progress("pictures", len(pictures), done=done) as advance:
        for vectors in picture_vectors(encoder, pictures[done:]):
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
