"""Names of the files in run folders and bundles."""

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


def encoder_files(second: bool) -> list[str]:
    """What inference reads of an encoder folder.

    Args:
        second: of a stitched model.
    """
    return [folder + name for folder in ("", f"{SECOND}/")[: 1 + second] for name in (CONFIG, TOKENIZER)]
