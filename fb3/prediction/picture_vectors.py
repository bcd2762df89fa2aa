"""Vectors of pictures, batch after batch, as much of each as memory holds."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fb3.data.frames.picture_files import Picture, as_rgb
from fb3.errors import Fb3Error, one_line
from fb3.models.image_encoder import ImageEncoder
from fb3.models.picture_processor import PixelMaker
from fb3.system.devices import within_memory
from fb3.system.prefetch import prefetch
from fb3.system.progress import say

_BATCH, _BATCH_CUDA = 16, 256  # pictures at a time while memory holds them
_T = TypeVar("_T")


class Vectors(NamedTuple):
    """Vectors of P pictures, R of which could be read.

    values: (R, D) float16, or pixels in uint8. read: (P,) bool. broken: a line for each picture that could not be read.
    """

    values: np.ndarray
    read: np.ndarray
    broken: list[str]


class _Prepared(NamedTuple):
    pixels: list[Tensor]  # (3, H, W) of each picture that could be read
    read: list[bool]
    broken: list[str]
    first: Picture


def picture_vectors(encoder: ImageEncoder | PixelMaker, pictures: Sequence[Picture]) -> Iterator[Vectors]:
    """Vectors of batch after batch of pictures.

    Threads decode and prepare a batch while the one before it is computed. If memory runs out, half as many pictures
    are computed at a time from then on, which is said.

    Raises:
        Fb3Error: memory does not suffice for one picture, a vector is not finite in float16, or the processor leaves
            pictures of several sizes.
    """
    batch = most = _BATCH_CUDA if encoder.device.type == "cuda" else _BATCH
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = (pictures[first : first + batch] for first in range(0, len(pictures), batch))
        with closing(prefetch(lambda chunk: _prepare(encoder, chunk, pool), chunks)) as coming:
            for prepared in coming:
                values, most = _encode(encoder, prepared, most)
                yield Vectors(values, np.array(prepared.read, bool), prepared.broken)


def _prepare(encoder: ImageEncoder | PixelMaker, pictures: Sequence[Picture], pool: ThreadPoolExecutor) -> _Prepared:
    opened = [_or_reason(picture.read) for picture in pictures]  # in their order: an npz is unpacked from its start
    made = list(pool.map(lambda image: _or_reason(lambda: _pixels(encoder, image)), opened))
    pairs = list(zip(pictures, made, strict=True))
    broken = [f"{picture} ({reason})" for picture, reason in pairs if isinstance(reason, str)]
    pixels = [pixels for pixels in made if not isinstance(pixels, str)]
    return _Prepared(pixels, [not isinstance(each, str) for each in made], broken, pictures[0])


def _pixels(encoder: ImageEncoder | PixelMaker, image: Any) -> Tensor | str:
    return image if isinstance(image, str) else encoder.prepare(as_rgb(image))


def _or_reason(make: Callable[[], _T]) -> _T | str:
    """The result, or the reason why a picture is broken: Pillow has many types of errors for it."""
    try:
        return make()
    except (Fb3Error, MemoryError):
        raise
    except Exception as error:
        return one_line(error)


def _encode(encoder: ImageEncoder | PixelMaker, prepared: _Prepared, most: int) -> tuple[np.ndarray, int]:
    """Vectors (R, D), and how many pictures memory allowed at a time."""
    if not prepared.pixels:
        return np.zeros((0, encoder.width), encoder.dtype), most
    if len(sizes := {tuple(each.shape) for each in prepared.pixels}) > 1:
        raise Fb3Error(
            f"{encoder.place}: its processor leaves pictures of several sizes, {sorted(sizes)[:3]}; set one size in "
            "preprocessor_config.json"
        )
    pixels = torch.stack(prepared.pixels)
    while (found := _try(encoder, pixels, most)) is None:
        if most == 1:
            raise Fb3Error(f"{encoder.place}: memory does not suffice for one picture on {encoder.device}")
        most = min(most, len(pixels)) // 2 or 1
        say(f"memory does not suffice; {most} pictures at a time from now on")
    values = np.concatenate(found)
    if not np.isfinite(values).all():
        raise Fb3Error(
            f"{encoder.place}: gives NaN, infinity or more than float16 holds, for {prepared.first} or a picture after "
            "it; take another encoder"
        )
    return values, most


def _try(encoder: ImageEncoder | PixelMaker, pixels: Tensor, most: int) -> list[np.ndarray] | None:
    return within_memory(lambda: [encoder.encode(part) for part in pixels.split(most)], encoder.device)
