"""Image encoders that are trained with the text's: pixels of an item's pictures become its frames' vectors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from fb3.data.frames.item_frames import ItemFrames
from fb3.models.backbone import explained, without_report
from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.models.image_encoder import kind_of_vector, read_vectors
from fb3.system.file_names import CONFIG

IMAGES = "frames.images."  # how its parameters' names begin in a scorer
_AT_ONCE, _ITEMS = 16, 128  # pictures at a time, and items, from which the vectors' spread is learned


class ImageTower(nn.Module):
    """An image encoder, whose vectors are those of `fb3.models.image_encoder.ImageEncoder`.

    The statistics of batch normalisation stay as they are: batches of some pictures would spoil them.

    Args:
        model: the image encoder.
        shape: (3, H, W) of a picture.
        mean, deviation: the normalisation that it wants, three numbers each, for values from 0 to 255.
    """

    def __init__(self, model: nn.Module, shape: list[int], mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.model, self.shape = model, shape
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        with torch.no_grad():
            out = model.eval()(pixel_values=torch.zeros(1, *shape))
        self.vector = kind_of_vector(model, out)
        self.width = read_vectors(out, self.vector).shape[1]

    def train(self, mode: bool = True) -> "ImageTower":
        """Sets dropout, and leaves batch normalisation out."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, values: Tensor, seen: Tensor) -> Tensor:
        """Vectors (B, F, width) of pictures (B, F, 3 H W), values from 0 to 255; zeros where `seen` (B, F) is 0."""
        vectors = values.new_zeros(*seen.shape, self.width)
        if not seen.any():
            return vectors
        pixels = values[seen.bool()].unflatten(-1, self.shape)  # (P, 3, H, W)
        out = self.model(pixel_values=(pixels - self.mean) / self.deviation)
        return vectors.masked_scatter(seen.bool()[..., None], read_vectors(out, self.vector))


class PictureEmbeddings(FrameEmbeddings):
    """Embeddings of pictures, through an image encoder that is trained with them."""

    def __init__(self, images: ImageTower, hidden: int, most: int) -> None:
        super().__init__(images.width, hidden, most)
        self.images = images

    def vectors(self, frames: Tensor, seen: Tensor) -> Tensor:
        return self.images(frames, seen)

    @torch.no_grad()
    def fit_items(self, items: ItemFrames, rows: np.ndarray) -> None:
        if not self.pretrained:
            pixels = torch.from_numpy(items.some(rows, _ITEMS)).split(_AT_ONCE)
            found = [self.images.eval()(each[None], each.new_ones(1, len(each)))[0] for each in pixels]
            self.fit(torch.cat(found).numpy())


def build_image_tower(folder: Path, pixels: dict[str, list], *, weights: bool) -> ImageTower:
    """The image encoder in a folder; without weights they are random, to be replaced.

    Args:
        folder: holds config.json and, for weights, model.safetensors.
        pixels: shape, mean and deviation, see `ImageTower`.
    """
    place = folder / CONFIG
    with explained(place), without_report():
        options = {"local_files_only": True, "trust_remote_code": False}
        if weights:
            model = AutoModel.from_pretrained(folder, **options)
        else:
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder, **options), trust_remote_code=False)
        return ImageTower(getattr(model, "vision_model", model).float(), **pixels)
