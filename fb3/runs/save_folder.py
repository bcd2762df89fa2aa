"""Saves on disk: listed, read and deleted."""

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
from fb3.runs.fold_json import check_weights, digest_of, is_finished
from fb3.system.file_names import RESUME, fold_folders
from fb3.system.files import read_json

Tree = dict[str, Any]
STATE, TENSORS = "state.json", "state.safetensors"
_TENSOR, _FLOAT = "$tensor", "$float"  # marks in the JSON: the name of a tensor, a number that JSON does not have


def list_saves(folder: Path) -> list[Path]:
    """The saves in a fold's folder of saves, the last one first."""
    saves = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(saves, key=lambda path: -int(path.name))


def delete_finished(out: Path) -> None:
    """Deletes the saves of a run's finished folds."""
    for folder in fold_folders(out):
        if (folder / RESUME).is_dir() and is_finished(folder):
            shutil.rmtree(folder / RESUME)


def hashed_json(content: Tree) -> str:
    """The content as JSON, with its own hash beside it."""
    return json.dumps({"sha256": _hash(content), "content": content}) + "\n"


def _hash(content: Tree) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_save(path: Path) -> Tree:
    """Reads a save, `made_of` and `state`; an Fb3Error where it is not whole."""
    stored = read_json(path / STATE, {"sha256": str, "content": dict})
    try:
        content = stored["content"]
        if stored["sha256"] != _hash(content):
            raise Fb3Error(f"{path / STATE}: damaged")
        if digest_of(path / TENSORS) != content["tensors"]:
            raise Fb3Error(f"{path / TENSORS}: damaged")
        if content["state"]["keeper"]["score"]:
            check_weights(path, "the save is damaged")
        # Tensors just read lie in the file's memory, at any address; copies are aligned like torch's own.
        tensors = {name: tensor.clone() for name, tensor in read_weights(path / TENSORS).items()}
        return {"made_of": content["made_of"], "state": insert_tensors(content["state"], tensors)}
    except Fb3Error:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Fb3Error(f"{path / STATE}: not a save ({error!r})") from None


def extract_tensors(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """A tree fit for JSON: its tensors go into `tensors`, on the CPU, and their names stand in their place."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous()
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        prefix = f"{name}/" if name else ""
        return {str(key): extract_tensors(value, tensors, f"{prefix}{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [extract_tensors(value, tensors, f"{name}/{place}") for place, value in enumerate(tree)]
    if isinstance(tree, float) and not math.isfinite(tree):
        return {_FLOAT: repr(float(tree))}
    return tree


def insert_tensors(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `extract_tensors` was given, its tuples as lists."""
    if isinstance(plain, list):
        return [insert_tensors(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {_TENSOR}:
        return tensors[plain[_TENSOR]]
    if plain.keys() == {_FLOAT}:
        return float(plain[_FLOAT])
    return {key: insert_tensors(value, tensors) for key, value in plain.items()}
