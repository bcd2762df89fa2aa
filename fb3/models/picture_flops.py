"""FLOPs of an image encoder for one picture, as torch counts them: each family has layers of its own."""

from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from fb3.models.backbone import without_report
from fb3.models.backbone_files import FRAMES_KEY, find_backbone
from fb3.models.picture_processor import PictureProcessor


@cache
def picture_flops(folder: Path) -> float:
    """FLOPs of a forward pass of one picture; products of matrices, convolutions and attention count.

    Args:
        folder: the image encoder of a run or a bundle. Its weights are not read.

    Raises:
        Fb3Error: its processor cannot be read.
    """
    with without_report():
        processor = PictureProcessor(find_backbone(str(folder), FRAMES_KEY), f"{FRAMES_KEY}={folder}")
    pixels = processor.prepare(Image.new("RGB", (64, 48)))[None]  # (1, 3, H, W)
    try:
        return _count(folder, pixels, "meta")
    except Exception:  # a model that reads a number amid its layers needs real ones
        return _count(folder, pixels, "cpu")


@torch.inference_mode()
def _count(folder: Path, pixels: Tensor, device: str) -> float:
    with without_report(), torch.device(device):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True)).eval()
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=pixels.to(device))
    return float(counter.get_total_flops())
