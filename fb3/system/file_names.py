"""Names of the files in run folders and bundles."""

import re
from pathlib import Path

RECIPE = "recipe.yaml"
ENCODER = "encoder"  # a run's folder of config and tokenizer
CONFIG, TOKENIZER = "config.json", "tokenizer.json"  # in it
PADDED = "fb3_padded_to"  # in config.json, tokens of every input where the states depend on padding
SECOND = "second"  # in it, those of the second encoder of a stitched model
WEIGHTS = "model.safetensors"  # of a fold
FOLD_JSON = "fold.json"  # score, seed, hash of a fold
INT8 = "int8.safetensors"  # of a packed fold, scales for linear layers in int8
OOF = "oof.csv"
RESUME = "resume"  # a fold's folder of saves, as long as it trains
LOCK = "lock"  # of a folder in which a process is at work
ENVIRONMENT = "environment.json"
MANIFEST = "manifest.json"  # of a bundle
METADATA = "dataset-metadata.json"  # for the upload; Kaggle's client reads it and leaves it out of the data set


def fold_folder(run: Path, number: int) -> Path:
    """The folder of a fold in a run folder."""
    return run / f"fold{number}"


def fold_number(folder: Path) -> int | None:
    """The number of a fold by its folder's name; none for any other name, such as folds.csv."""
    found = re.fullmatch("fold([0-9]+)", folder.name)
    return int(found[1]) if found else None


def fold_folders(run: Path) -> list[Path]:
    """The fold folders in a run folder, by number, trained to their end or not."""
    folders = (path for path in run.glob("fold*") if fold_number(path) is not None and path.is_dir())
    return sorted(folders, key=fold_number)


def encoder_files(second: bool) -> list[str]:
    """Names of the files in an encoder folder that inference reads.

    Args:
        second: a stitched model, which has two encoders.
    """
    return [folder + name for folder in ("", f"{SECOND}/")[: 1 + second] for name in (CONFIG, TOKENIZER)]
