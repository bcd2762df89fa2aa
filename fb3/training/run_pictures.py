"""The pictures of a run: its own copy of the image encoder, and their vectors, before anything else reads them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from fb3.models.attached_backbone import local_backbone
from fb3.models.backbone_files import FRAMES_KEY
from fb3.prediction.frame_vectors import with_vectors
from fb3.recipe import Recipe
from fb3.runs.fold_json import is_begun
from fb3.system.devices import pick_device
from fb3.system.file_names import IMAGE_ENCODER
from fb3.system.files import atomic_folder


def read_pictures(
    recipe: Recipe, out: Path, accelerator: Accelerator, tables: Sequence[pd.DataFrame | None]
) -> list[pd.DataFrame | None]:
    """Tables of items with vectors in place of their pictures; the main process computes them, the others wait for it.

    Raises:
        Fb3Error: the image encoder cannot be used, or no picture can be read.
    """
    if not recipe.data.image_encoder:
        return [*tables]
    folder = out / IMAGE_ENCODER

    def read() -> list[pd.DataFrame | None]:
        empty = [table is None or table.empty for table in tables]
        both = zip(tables, empty, strict=True)
        return [table if none else with_vectors(table, recipe, folder, drawn=True) for table, none in both]

    if accelerator.is_main_process:
        if not is_begun(out):  # a start that failed may have left another recipe's
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.is_dir():
            _copy_encoder(recipe.data.image_encoder, folder)
        read()
    accelerator.wait_for_everyone()
    return read()


def _copy_encoder(encoder: str, folder: Path) -> None:
    from fb3.models.image_encoder import ImageEncoder

    with atomic_folder(folder) as aside:
        ImageEncoder(local_backbone(encoder, FRAMES_KEY), pick_device(), FRAMES_KEY).save(aside)
