"""Seconds that pictures beside essays take at inference, once for all runs that read the same vectors of them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fb3.ensembles.frontier import SharedSeconds
from fb3.models.flops import T4_FLOPS
from fb3.prediction.frame_vectors import picture_reader, pictures_read
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.runs.run_folder import Member, training_essays
from fb3.system.file_names import image_encoder_folder
from fb3.system.files import sha256
from fb3.system.progress import say

if TYPE_CHECKING:
    from fb3.data.frames.picture_files import Picture
    from fb3.models.image_encoder import ImageEncoder
    from fb3.models.picture_processor import PixelMaker

_ITEMS, _FEW, _MANY = 256, 8, 48  # items whose pictures are counted, and pictures that are prepared or computed
_CORES = 4  # a Kaggle machine has so many beside its T4s, to prepare pictures while a GPU computes others


def picture_seconds(runs: Sequence[Member], essays: int, data: Path | None, *, measured: bool) -> list[SharedSeconds]:
    """The time of the pictures of each image encoder.

    Where it is trained, each fold's price holds its computing, and only the pictures' preparing is shared.

    Args:
        runs: the members; some read pictures.
        essays: how many are predicted; the training essays say how many pictures one has.
        data: the competition's folder.
        measured: on this machine; otherwise on a T4, by FLOPs, and by the processor time of preparing here.

    Raises:
        Fb3Error: the training essays, their pictures or an image encoder cannot be read.
    """
    groups: dict[tuple, list[int]] = {}
    for place, run in enumerate(runs):
        if frames := run.recipe.data.image_encoder and run.recipe.data.frames:
            kind = (sha256(image_encoder_folder(run.path)), _frozen(run))
            groups.setdefault((*kind, frames.files, frames.most), []).append(place)
    found = []
    for places in groups.values():
        run = runs[places[0]]
        pictures, of_essay = _some_pictures(run, data)
        each = _seconds_here(run, pictures) if measured else _seconds_on_t4(run, pictures)
        seconds = essays * of_essay * each
        names = ", ".join(runs[place].name for place in places)
        say(f"--limit: {essays * of_essay:.0f} pictures of {names}: about {seconds:.0f} s, once for these runs")
        found.append(SharedSeconds(seconds, frozenset(places)))
    return found


def _some_pictures(run: Member, data: Path | None) -> tuple[list["Picture"], float]:
    """Pictures of some training essays, in the order in which their files hold them, and how many an essay has."""
    essays = training_essays(run.path, run, data)
    some = essays.sample(min(_ITEMS, len(essays)), random_state=0)[FRAMES_COLUMN]
    items, _ = pictures_read([each for each in some if each.count], run.recipe.data.frames.most)
    pictures = [picture for of_item in items.values() for picture in of_item]
    count = len(pictures) / len(some)
    return sorted(pictures[:_MANY], key=lambda picture: (picture.file.path, picture.place)), count


def _seconds_here(run: Member, pictures: Sequence["Picture"]) -> float:
    """Seconds for one picture on this machine."""
    from fb3.prediction.picture_vectors import picture_vectors

    reader, seconds = _reader(run), 0.0
    for part in (pictures[:_FEW], pictures):  # the first call of a process pays for more than its pictures
        begun = time.monotonic()
        for _ in picture_vectors(reader, part):
            pass
        seconds = time.monotonic() - begun
    return seconds / max(len(pictures), 1)


def _seconds_on_t4(run: Member, pictures: Sequence["Picture"]) -> float:
    """Seconds for one picture: its preparing, or its computing, whichever takes longer."""
    from fb3.data.frames.picture_files import as_rgb
    from fb3.models.picture_flops import picture_flops

    reader, times = _reader(run), []
    for picture in pictures:
        begun = time.process_time()
        with suppress(Exception):  # Pillow has many types of errors for a broken picture
            reader.prepare(as_rgb(picture.read()))
            times.append(time.process_time() - begun)
    computing = picture_flops(image_encoder_folder(run.path)) / T4_FLOPS if _frozen(run) else 0.0
    return max(float(np.median(times or [0.0])) / _CORES, computing)


def _reader(run: Member) -> "ImageEncoder | PixelMaker":
    return picture_reader(image_encoder_folder(run.path), pixels=not _frozen(run))


def _frozen(run: Member) -> bool:
    return run.recipe.optimizer.image_rate is None
