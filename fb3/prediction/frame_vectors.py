"""Vectors in place of the pictures beside essays: computed once for all runs of one image encoder, and kept."""

import atexit
import hashlib
import os
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fb3.data.frames.frame_files import count_frames
from fb3.data.frames.frame_references import FrameReference, open_pictures
from fb3.data.frames.item_frames import even_steps
from fb3.recipe import Recipe
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.system.cache import cache_folder
from fb3.system.files import sha256
from fb3.system.progress import say

if TYPE_CHECKING:
    from fb3.data.frames.picture_files import Picture
    from fb3.models.image_encoder import ImageEncoder
    from fb3.models.picture_processor import PixelMaker

_SHOWN = 1000  # pictures that take long enough to be told of
_CUT_SHORT: dict[str, Path] = {}  # files of this process that lack pictures, by the names of the whole ones


def with_vectors(
    essays: pd.DataFrame, recipe: Recipe, encoder: Path, *, drawn: bool = False, until: float = inf
) -> pd.DataFrame:
    """The essays with references to vectors of their pictures; as they are where their frames are vectors already.

    Where the image encoder is trained, the references are to the pictures' pixels, as it wants them.

    Args:
        essays: the table of `read_split`.
        recipe: its data.frames, and optimizer.image_rate, decide.
        encoder: the image encoder's folder.
        drawn: whether any picture may be drawn in training; otherwise only those in even steps are computed.
        until: the time.monotonic() by which to stop; pictures that are left then are missing in this process.

    Raises:
        Fb3Error: see `ImageEncoder` and `write_picture_vectors`; no picture that may be drawn can be read.
    """
    settings, pixels = recipe.data.frames, recipe.optimizer.image_rate is not None
    if not recipe.data.image_encoder:
        return essays
    items, digest = pictures_read(
        [each for each in essays[FRAMES_COLUMN] if each.count], None if drawn else settings.most
    )
    name = hashlib.sha256(f"{sha256(encoder)} {pixels} {digest}".encode()).hexdigest()[:32]
    out = _CUT_SHORT.get(name) or cache_folder("frames") / f"{name}.npz"
    if not out.is_file():
        out = _compute(items, encoder, out, digest, pixels, drawn, until)
    found = np.empty(len(essays), object)
    for row, each in enumerate(essays[FRAMES_COLUMN]):
        found[row] = FrameReference(out, each.identifier, count_frames(out, each.identifier))
    return essays.assign(**{FRAMES_COLUMN: found})


def pictures_read(references: Sequence[FrameReference], most: int | None) -> tuple[dict[str, "list[Picture]"], str]:
    """The pictures that are read of each item, `most` in even steps where they are more, and a hash of them all."""
    files = {file.path: file for file in open_pictures(sorted({each.file for each in references}))}
    from fb3.data.frames.picture_files import pictures_of

    items, digest = {}, hashlib.sha256()
    for path in sorted(files):
        digest.update(files[path].digest().encode())
    for each in references:
        pictures = pictures_of(files[each.file], each.identifier)
        if most is not None and len(pictures) > most:
            pictures = [pictures[place] for place in even_steps(len(pictures), most)]
        items[each.identifier] = pictures
        names = [each.identifier, *(str(picture.place) for picture in pictures)]
        digest.update(repr(names).encode())
    return items, digest.hexdigest()


def picture_reader(encoder: Path, pixels: bool) -> "ImageEncoder | PixelMaker":
    """The image encoder in a folder, or the maker of the pixels that one wants which is trained."""
    from fb3.models.backbone_files import FRAMES_KEY
    from fb3.models.image_encoder import ImageEncoder
    from fb3.models.picture_processor import PixelMaker
    from fb3.system.devices import pick_device

    return PixelMaker(str(encoder)) if pixels else ImageEncoder(str(encoder), pick_device(), FRAMES_KEY)


def _compute(
    items: Mapping[str, "list[Picture]"],
    encoder: Path,
    out: Path,
    digest: str,
    pixels: bool,
    some: bool,
    until: float,
) -> Path:
    """Writes the vectors; returns another file than `out` where time did not suffice for all."""
    from fb3.prediction.picture_vector_file import write_picture_vectors

    what = "pixels for their encoder" if pixels else "vectors"
    shown = sum(map(len, items.values())) >= _SHOWN
    if shown:
        say(f"{sum(map(len, items.values()))} pictures of {len(items)} items become {what}, kept in {out.parent}")
    written = write_picture_vectors(
        picture_reader(encoder, pixels),
        items,
        out,
        name=encoder.name,
        digests=[digest],
        some=some and bool(items),
        until=until,
        anew=True,
        cut_short=out.with_name(f"{out.stem}-{os.getpid()}.npz"),
    )
    if shown or written.missing:
        say(written.words)
    if written.missing:
        _CUT_SHORT[out.stem] = written.path
        atexit.register(written.path.unlink, missing_ok=True)
    return written.path
