"""Backbones attached to a notebook: a mounted input folder named like the hub id takes the hub's place."""

from contextlib import suppress
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.models.backbone_files import unreachable
from fb3.system.file_names import CONFIG, RECIPE
from fb3.system.kaggle import folders_with, input_root

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def local_backbone(backbone: str, key: str) -> str:
    """The mounted input folder named like a hub id, such as .../deberta-v3-base/; else the id, for the hub to find.

    A folder is returned as it is. An Fb3Error, which names the recipe's `key`, where several mounted folders bear the
    name, or where none does and the hub cannot be reached.
    """
    if backbone.startswith((".", "/", "~")) or Path(backbone).is_dir():
        return backbone
    try:
        root, found = input_root(), folders_with(CONFIG)
    except Fb3Error:  # not in a notebook: there are no inputs
        return backbone
    folders = [folder for folder in found if any(any(folder.glob(name)) for name in _WEIGHTS)]
    folders = [folder for folder in folders if not (folder.parent / RECIPE).is_file()]  # no run's encoder
    names = {_plain(backbone), _plain(backbone.rpartition("/")[2])}
    same = [folder for folder in folders if names & {_plain(part) for part in folder.relative_to(root).parts}]
    mend = f"give {key}=FOLDER; attached are {[str(folder) for folder in folders] or 'none'}"
    if len(same) > 1:
        raise Fb3Error(f"{key}={backbone}: {len(same)} attached folders bear this name; {mend}")
    if not same and not _cached(backbone) and (why := unreachable()):
        raise Fb3Error(
            f"{key}={backbone}: no folder of this name is attached below {root}, and the hub {why}. "
            f"Attach the model (Add Input → Models or Datasets), or {mend}"
        )
    return str(same[0]) if same else backbone


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _cached(backbone: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # raised for a name that no model on the hub can have
        return isinstance(try_to_load_from_cache(backbone, CONFIG), str)
    return False
