"""Tiny image encoders by config, with their real processors, and pictures of all kinds that Pillow writes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
)

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_PATCHES = {"image_size": 32, "patch_size": 8}
_SQUARE = {"height": 32, "width": 32}
FAMILIES = ("clip", "vit", "swin", "convnext")


def write_image_encoder(family: str, folder: Path, seed: int = 0) -> Path:
    """A folder with config, random weights and processor, as save_pretrained writes them."""
    torch.manual_seed(seed)
    if family == "clip":
        texts = {**_SIZES, "vocab_size": 50, "max_position_embeddings": 10, "bos_token_id": 0, "eos_token_id": 1}
        CLIPModel(CLIPConfig(text_config=texts, vision_config=_SIZES | _PATCHES)).save_pretrained(folder)
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_SQUARE)
    elif family == "convnext":
        sizes = {"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1], "image_size": 32}
        AutoModel.from_config(ConvNextConfig(**sizes)).save_pretrained(folder)
        processor = ConvNextImageProcessor(size={"shortest_edge": 32})
    else:
        swin = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
        config = ViTConfig(**_SIZES, **_PATCHES) if family == "vit" else SwinConfig(**swin, window_size=4)
        AutoModel.from_config(config).save_pretrained(folder)
        processor = ViTImageProcessor(size=_SQUARE)
    processor.save_pretrained(folder)
    return folder


def drawn(number: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of coloured squares that no other number has."""
    rng = np.random.default_rng(number)
    squares = rng.integers(0, 256, (4, 4, 4 if mode == "RGBA" else 3), dtype=np.uint8)
    made = Image.fromarray(squares).resize(size, Image.Resampling.BICUBIC)
    return made if mode == "RGBA" else made.convert(mode)


def write_npz(path: Path, counts: list[int], first: int = 0, prefix: str = "n") -> Path:
    """Items {prefix}0, {prefix}1, ... of so many pictures each, the form of video frames in one file."""
    frames = [np.asarray(drawn(first + number)) for number in range(sum(counts))]
    ids, offsets = [f"{prefix}{n}" for n in range(len(counts))], np.cumsum([0, *counts]).astype(np.int32)
    np.savez_compressed(path, ids=np.array(ids), offsets=offsets, frames=np.stack(frames))
    return path
