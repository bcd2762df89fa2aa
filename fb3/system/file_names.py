"""Names of the files in run folders and bundles."""

import re
from pathlib import Path

# In a run folder
RECIPE = "recipe.yaml"
PREPARE = "prepare.py"  # the run's copy of the file that data.prepare names
ENCODER = "encoder"  # folder of the backbone's config and tokenizer
CONFIG, TOKENIZER = "config.json", "tokenizer.json"  # in the encoder folder
FRAME_ENCODER = "fb3_frame_encoder"  # key of config.json: a hash of the image encoder that made the frames
FRAME_PIXELS = "fb3_frame_pixels"  # key of config.json: shape and normalisation of pictures whose encoder is trained
FRAME_WIDTH = "fb3_frame_width"  # key of config.json: numbers of a frame that stands beside the text
PADDED = "fb3_padded_to"  # key of config.json: tokens to which every input is padded, where states depend on padding
SECOND = "second"  # in the encoder folder: the folder of a stitched model's second encoder
IMAGE_PROCESSOR = "preprocessor_config.json"  # in the folder of an image encoder
IMAGE_ENCODER = "image_encoder"  # folder of the image encoder that data.frames.encoder names; in a bundle all runs'
OOF = "oof.csv"
DECISION = "decision.json"  # fitted on oof.csv
ENSEMBLE = "ensemble.json"  # members and weights, in the folder of an ensemble
ENVIRONMENT = "environment.json"
PSEUDO = "pseudo.json"  # provenance, in the folder of pseudo-labels
LOCK = "lock"  # held by the process that writes the folder

FEATURES = "features"  # the folder of an estimator's encoders, and in a fold folder that of the fold's own
VECTORS = "vectors.safetensors"  # in the folder of a feature: one for each training essay

# In the folder of a pretrained encoder, beside config, tokenizer and weights
FRAME_WEIGHTS = "frames.safetensors"  # embeddings of frames and their standardisation, where it has read any
PROVENANCE = "pretraining.json"  # texts that the encoder has seen, and hashes of its files

# In a fold folder
WEIGHTS = "model.safetensors"
FOLD_JSON = "fold.json"  # score, seed and hash
INT8 = "int8.safetensors"  # scales for linear layers in int8, in a bundle only
RESUME = "resume"  # folder of saves, until the fold is trained to its end

# In a bundle
MANIFEST = "manifest.json"
PREDICTIONS = "predictions"  # folder of members without a model, and the manifest's key of their weights
METADATA = "dataset-metadata.json"  # read by Kaggle's client, which leaves it out of the data set


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


def image_encoder_folder(run: Path) -> Path:
    """The folder of the image encoder that data.frames.encoder names: a run's own, or the one of its bundle."""
    own, shared = run / IMAGE_ENCODER, run.parent.parent / IMAGE_ENCODER
    return own if own.is_dir() or not shared.is_dir() else shared


def feature_folder(folder: Path, number: int) -> Path:
    """The folder of a feature, in a run folder or a fold folder."""
    return folder / FEATURES / str(number)


def encoder_files(second: bool) -> list[str]:
    """The files of an encoder folder that inference reads; a stitched model has a `second` encoder."""
    return [folder + name for folder in ("", f"{SECOND}/")[: 1 + second] for name in (CONFIG, TOKENIZER)]
