"""Saves on disk: found, read and dropped."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fb3.errors import Fb3Error
from fb3.runs.checkpoint import read_weights
from fb3.runs.fold_json import is_finished
from fb3.system.file_names import FOLD_JSON, RESUME, WEIGHTS
from fb3.system.files import read_json, sha256

Tree = dict[str, Any]
STATE, TENSORS = "state.json", "state.safetensors"
_TENSOR, _FLOAT = "$tensor", "$float"  # marks in the JSON: the name of a tensor, a number that JSON has not


def found(folder: Path) -> list[Path]:
    """The saves in a fold's folder of saves, the last one first."""
    saves = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(saves, key=lambda path: -int(path.name))


def drop_finished(out: Path) -> None:
    """Deletes the saves of a run's finished folds."""
    for folder in out.glob(f"fold*/{RESUME}"):
        if is_finished(folder.parent):
            shutil.rmtree(folder)


def sealed(content: Tree) -> str:
    """As JSON, with the hash of all that stands in it."""
    text = json.dumps(content)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}) + "\n"


def read_save(path: Path) -> Tree:
    """A save: made_of and state.

    Raises:
        Fb3Error: it is not whole.
    """
    found = read_json(path / STATE, {"sha256": str, "content": dict})
    try:
        content = found["content"]
        if found["sha256"] != hashlib.sha256(json.dumps(content).encode()).hexdigest():
            raise Fb3Error(f"{path / STATE}: damaged")
        if not (path / TENSORS).is_file() or sha256(path / TENSORS) != content["tensors"]:
            raise Fb3Error(f"{path / TENSORS}: damaged")
        if content["state"]["keeper"]["score"]:
            best = read_json(path / FOLD_JSON, {"sha256": str})["sha256"]
            if not (path / WEIGHTS).is_file() or sha256(path / WEIGHTS) != best:
                raise Fb3Error(f"{path / WEIGHTS}: damaged")
        # Copies: what was read lies in the file's memory, at any address.
        tensors = {name: tensor.clone() for name, tensor in read_weights(path / TENSORS).items()}
        return {"made_of": content["made_of"], "state": joined(content["state"], tensors)}
    except Fb3Error:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Fb3Error(f"{path / STATE}: not a save ({error!r})") from None


def split(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """The tree with names in the place of its tensors, which go into `tensors`, on the CPU: fit for JSON."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous()
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        return {str(key): split(value, tensors, f"{name}/{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [split(value, tensors, f"{name}/{place}") for place, value in enumerate(tree)]
    if isinstance(tree, float) and not math.isfinite(tree):
        return {_FLOAT: repr(float(tree))}
    return tree


def joined(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that was split; a tuple has become a list."""
    if isinstance(plain, list):
        return [joined(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {_TENSOR}:
        return tensors[plain[_TENSOR]]
    if plain.keys() == {_FLOAT}:
        return float(plain[_FLOAT])
    return {key: joined(value, tensors) for key, value in plain.items()}
