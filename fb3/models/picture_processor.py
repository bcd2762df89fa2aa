"""The processor of an image encoder: a picture becomes the pixels that the encoder reads.

Pillow and numpy prepare the pixels (`use_fast=False`): they give the same numbers in every version of transformers,
with torchvision or without.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from fb3.data.frames.frame_files import PIXELS
from fb3.errors import Fb3Error
from fb3.models.backbone import explained
from fb3.models.backbone_files import FRAMES_KEY, Source, find_backbone

if TYPE_CHECKING:
    from PIL import Image  # runs on texts alone need no Pillow

_WHOLE = 0.01  # difference to a whole number that rounding explains


class PictureProcessor:
    """Resizes, cuts and scales pictures as the encoder's own processor does.

    Args:
        source: the image encoder.
        place: names it in errors.
    """

    def __init__(self, source: Source, place: str) -> None:
        self.place, options = place, {"local_files_only": source.local, "trust_remote_code": False}
        self._own = AutoImageProcessor.from_pretrained(source.name, use_fast=False, **options)
        self.of_timm = hasattr(self._own, "data_config")  # its config.json says how pictures are prepared
        self.save = self._own.save_pretrained

    def prepare(self, picture: "Image.Image") -> Tensor:
        """Pixels (3, H, W) float32 of an RGB picture."""
        form = {} if self.of_timm else {"input_data_format": "channels_last"}
        pixels = self._own(images=picture, return_tensors="pt", **form)["pixel_values"]
        if pixels.ndim != 4 or len(pixels) != 1:
            raise Fb3Error(f"{self.place}: its processor gives pixels of shape {tuple(pixels.shape)}, want one picture")
        return pixels[0]

    def settings(self) -> dict[str, Any]:
        """Its settings, as it writes them itself."""
        return json.loads(self._own.to_json_string())

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (3,) by which values from 0 to 255 are normalised, (value - mean) / deviation."""
        if self.of_timm:
            mean, deviation, unit = self._own.data_config["mean"], self._own.data_config["std"], 255.0
        else:
            own, unit = self._own, 1 / self._own.rescale_factor if self._own.do_rescale else 1.0
            mean, deviation = (own.image_mean, own.image_std) if own.do_normalize else ([0.0] * 3, [1.0] * 3)
        return torch.tensor(mean) * unit, torch.tensor(deviation) * unit


class PixelMaker:
    """Pictures as whole numbers from 0 to 255, resized and cut as an image encoder wants them, to be trained with it.

    It has the place of an `ImageEncoder` where files of vectors are written: a picture's "vector" are its pixels.

    Args:
        folder: the image encoder's folder.

    Attributes:
        shape: (3, H, W) of each picture.
        mean, deviation: the normalisation that the encoder wants, (3,).

    Raises:
        Fb3Error: the processor changes pixels in a way that cannot be undone.
    """

    vector, dtype, device = PIXELS, np.uint8, torch.device("cpu")

    def __init__(self, folder: str) -> None:
        from PIL import Image

        source, self.place = find_backbone(folder, FRAMES_KEY), f"{FRAMES_KEY}={folder}"
        with explained(self.place, source):
            self.processor = PictureProcessor(source, self.place)
            self.mean, self.deviation = self.processor.normalisation()
            noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
            values = self._values(self.prepare(Image.fromarray(noise)))
        if (values - values.round()).abs().max() > _WHOLE or values.min() < -_WHOLE or values.max() > 255 + _WHOLE:
            raise Fb3Error(
                f"{self.place}: its processor changes pixels in a way that cannot be undone; leave "
                "optimizer.image_rate out, so that it stays frozen"
            )
        self.shape = tuple(values.shape)
        self.width = values.numel()

    def prepare(self, picture: "Image.Image") -> Tensor:
        """Pixels (3, H, W) float32 of an RGB picture."""
        return self.processor.prepare(picture)

    def encode(self, pixels: Tensor) -> np.ndarray:
        """Values (B, 3 H W) uint8 of pixels (B, 3, H, W)."""
        return self._values(pixels).round().clamp(0, 255).to(torch.uint8).flatten(1).numpy()

    def _values(self, pixels: Tensor) -> Tensor:
        return pixels * self.deviation[:, None, None] + self.mean[:, None, None]

    def description(self) -> dict[str, Any]:
        """Everything that decides the pixels but the picture."""
        return {"weights": "", "processor": self.processor.settings(), "vector": self.vector}
