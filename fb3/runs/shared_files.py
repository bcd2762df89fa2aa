"""The files that all folds of a run read: the one place that asks whether encoder/ or features/ hold them."""

from pathlib import Path

from fb3.models.backbone_files import is_timm
from fb3.recipe import Recipe
from fb3.system.file_names import (
    CONFIG,
    ENCODER,
    FEATURES,
    IMAGE_ENCODER,
    IMAGE_PROCESSOR,
    RECIPE,
    TOKENIZER,
    WEIGHTS,
    encoder_files,
    feature_folder,
    image_encoder_folder,
)


def shared_folder(recipe: Recipe) -> str:
    """The name of the folder that holds them: of the encoder, or of an estimator's features."""
    return FEATURES if recipe.estimator else ENCODER


def shared_files(run: Path, recipe: Recipe) -> dict[str, Path]:
    """The files by their names below `shared_folder`. An encoder's weights are among them where all folds share it."""
    if not recipe.estimator:
        return {name: run / ENCODER / name for name in encoder_files(bool(recipe.model.stitch))}
    files = {}
    for number, feature in enumerate(recipe.estimator.features):
        home = feature_folder(run, number)
        if feature.kind == "embeddings":
            last = home / (RECIPE if (home / RECIPE).is_file() else WEIGHTS)
            own = [home / ENCODER / CONFIG, home / ENCODER / TOKENIZER, last]
            files |= {file.relative_to(home.parent).as_posix(): file for file in own}
    return files


def image_files(run: Path, recipe: Recipe) -> dict[str, Path]:
    """The files of a run's image encoder by their names in it; empty where the recipe names none."""
    if not recipe.data.image_encoder:
        return {}
    folder = image_encoder_folder(run)
    names = [CONFIG, WEIGHTS] if (folder / CONFIG).is_file() and is_timm(folder) else [CONFIG, IMAGE_PROCESSOR, WEIGHTS]
    return {f"{IMAGE_ENCODER}/{name}": folder / name for name in names}


def recorded_files(run: Path, recipe: Recipe) -> dict[str, Path]:
    """The files of both folders, whose hashes stand in environment.json."""
    return {**shared_files(run, recipe), **image_files(run, recipe)}
