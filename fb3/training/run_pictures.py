"""The pictures of a run: its own copy of the image encoder, and their vectors, before anything else reads them."""

from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from fb3.models.attached_backbone import local_backbone
from fb3.models.backbone_files import FRAMES_KEY
from fb3.prediction.frame_vectors import with_vectors
from fb3.recipe import Recipe
from fb3.system.devices import pick_device
from fb3.system.file_names import IMAGE_ENCODER
from fb3.system.files import atomic_folder


def read_pictures(recipe: Recipe, out: Path, accelerator: Accelerator, table: pd.DataFrame) -> pd.DataFrame:
    """Items with vectors in place of their pictures; the main process computes them, the others wait for it.

    Raises:
        Fb3Error: the image encoder cannot be used, or no picture can be read.
    """
    if not recipe.data.image_encoder or table.empty:
        return table
    folder = out / IMAGE_ENCODER
    if accelerator.is_main_process:
        if not folder.is_dir():
            _copy_encoder(recipe.data.image_encoder, folder)
        with_vectors(table, recipe, folder, drawn=True)
    accelerator.wait_for_everyone()
    return with_vectors(table, recipe, folder, drawn=True)


def _copy_encoder(encoder: str, folder: Path) -> None:
    from fb3.models.image_encoder import ImageEncoder

    with atomic_folder(folder) as aside:
        ImageEncoder(local_backbone(encoder, FRAMES_KEY), pick_device(), FRAMES_KEY).save(aside)
