"""Frames of the hidden rows of a rehearsal: vectors or pictures, of odd items too."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.frames.frame_files import write_frames
from fb3.data.frames.frame_references import FrameReference, open_pictures
from fb3.recipe.data import DataSettings
from fb3.recipe.frames import FRAMES_COLUMN, FramesSettings

_CUT_OFF = 60  # bytes that are left of a broken picture


def write_hidden_frames(test: pd.DataFrame, settings: DataSettings, out: Path) -> None:
    """Writes the frames of the hidden rows, some of whom have none, too many, or a picture that is cut off.

    A row whose texts are all empty has none either. The references then say what stands in the file.
    """
    path, most = out / settings.frames.files[0], settings.frames.most
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = _stored(test[FRAMES_COLUMN], settings.frames)
    texts = test[[name for name in settings.text_columns() if name in test.columns]]
    empty = np.flatnonzero((texts.apply(lambda column: column.str.strip()) == "").all(axis=1))
    bare = next((row for row, each in enumerate(stored) if each), 0)
    odd = {bare: 0, bare + 1: 2 * most, **dict.fromkeys(empty[:1].tolist(), 0)}
    for row, times in odd.items():
        if row < len(stored):
            stored[row] = stored[row][:1] * times
    whole = next((row for row, each in enumerate(stored) if each and row not in odd), None)
    if not settings.frames.encoder:
        width = max((len(frame) for each in stored for frame in each), default=1)
        write_frames(path, test[settings.id_column].tolist(), [np.reshape(each, (-1, width)) for each in stored])
    else:
        from fb3.data.frames.picture_files import write_pictures

        if path.suffix != ".npz" and whole is not None:
            stored[whole] = [stored[whole][0][:_CUT_OFF], *stored[whole][1:]]
        write_pictures(path, dict(zip(test[settings.id_column], stored, strict=True)))
    contents = [hashlib.sha256(b"".join(map(bytes, each))).hexdigest() for each in stored]
    test[FRAMES_COLUMN] = [FrameReference(path, *of) for of in zip(contents, map(len, stored), strict=True)]


def _stored(references: Iterable[FrameReference], settings: FramesSettings) -> list[list]:
    """The frames of each item, each a vector or the content of an image file."""
    if not settings.encoder:
        return [[*each.read()] for each in references]
    files = {file.path: file for file in open_pictures(sorted({each.file for each in references}))}
    places = [
        [(each.file, place) for place in files[each.file].items[each.identifier]] if each.count else []
        for each in references
    ]
    # In the files' order, each picture once: a packed npz unpacks from its beginning for a step back.
    contents = {
        (file, place): files[file].content(place) for file, place in sorted({each for of in places for each in of})
    }
    return [[contents[each] for each in of] for of in places]
