"""Tiny image encoders by config, with their real processors, and pictures of all kinds that Pillow writes."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
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


def write_picture_items(folder: Path, form: str = "zip", count: int = 40, seed: int = 0) -> Path:
    """train.csv and test.csv of titles, and pictures of both: the text says a label's first half, they its second.

    Each eighth item has no picture. form: zip, folder or npz, which then is `pictures.zip`, `pictures` or
    `pictures.npz`.
    """
    rng, pictures = np.random.default_rng(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        words, sides = rng.integers(0, 2, count), rng.integers(0, 2, count)
        table = pd.DataFrame({"id": [f"{split}{n}" for n in range(count)]})
        table["title"] = [f"a {('pear', 'stone')[word]} on the {rng.choice(['table', 'shelf'])}" for word in words]
        if split == "train":
            table["label"] = [f"{word}{side}" for word, side in zip(words, sides, strict=True)]
        table.to_csv(folder / f"{split}.csv", index=False)
        for row, side in enumerate(sides):
            some = range(0 if row % 8 == 7 else int(rng.integers(1, 5)))
            shades = [np.uint8(np.clip(rng.normal(60 + 130 * side, 20, (30, 40, 3)), 0, 255)) for _ in some]
            pictures[f"{split}{row}"] = [Image.fromarray(shade) for shade in shades]
    if form == "npz":
        frames = [np.asarray(each) for of_item in pictures.values() for each in of_item]
        offsets = np.cumsum([0, *map(len, pictures.values())])
        np.savez(folder / "pictures.npz", ids=np.array([*pictures]), offsets=offsets, frames=np.stack(frames))
        return folder
    for item, of_item in pictures.items():
        for number, each in enumerate(of_item):
            path = folder / "pictures" / item / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            each.save(path, quality=95)
    if form == "zip":
        shutil.make_archive(str(folder / "pictures"), "zip", folder, "pictures")
        shutil.rmtree(folder / "pictures")
    return folder


def picture_recipe(encoder: Path, files: str = "pictures.zip", most: int = 3) -> list[str]:
    """Overrides of `tiny` for these items."""
    return [
        "data.id_column=id",
        "data.text_column=title",
        "data.target_columns=[label]",
        "data.files.sample=null",
        f"data.frames={{files: [{files}], most: {most}, encoder: {encoder}}}",
        "task={kind: classification}",
        "metric=macro_f1",
        "folds.count=2",
        "train.epochs=2",
        "train.batch_size=8",
        "train.precision=fp32",
        "predict.precision=fp32",
    ]
