"""Backbones attached to a notebook: a folder of a hub id's name, mounted among the inputs, takes the hub's place."""

from contextlib import suppress
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.models.backbone_files import unreachable
from fb3.system.file_names import CONFIG, RECIPE
from fb3.system.kaggle import folders_with, input_root

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def local_backbone(backbone: str, key: str) -> str:
    """The folder of a hub id's name among the mounted inputs, such as .../deberta-v3-base/.

    Args:
        backbone: a hub id; a folder is returned as it is.
        key: of the recipe, named in the error.

    Returns:
        The folder; the hub id if nothing is mounted, or if the hub can be asked for it.

    Raises:
        Fb3Error: several folders bear the name; or none does, and the hub cannot be reached either.
    """
    if backbone.startswith((".", "/", "~")) or Path(backbone).is_dir():
        return backbone
    try:
        root, found = input_root(), folders_with(CONFIG)
    except Fb3Error:  # not in a notebook: there are no inputs
        return backbone
    folders = [folder for folder in found if any(any(folder.glob(name)) for name in _WEIGHTS)]
    folders = [folder for folder in folders if not (folder.parent / RECIPE).is_file()]  # not an earlier run's own
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
