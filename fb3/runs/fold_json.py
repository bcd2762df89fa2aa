"""fold.json: what a fold folder says of itself. No torch."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error
from fb3.system.file_names import FOLD_JSON, RESUME, WEIGHTS, fold_folder, fold_folders
from fb3.system.files import read_json, sha256, write_json


def ids_hash(ids: Any) -> str:
    """The hash of a set of ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()


def mark_finished(folder: Path) -> None:
    """Writes into fold.json that the fold was trained to its end, not only to its last evaluation."""
    write_json({**read_json(folder / FOLD_JSON), "finished": True}, folder / FOLD_JSON)


def is_finished(folder: Path) -> bool:
    """Whether a fold was trained to its end."""
    if not (folder / FOLD_JSON).is_file():
        return False
    info = read_json(folder / FOLD_JSON)
    if type(info.get("fold")) is not int or fold_folder(folder.parent, info["fold"]) != folder:
        raise Fb3Error(f"{folder / FOLD_JSON}: not a fold's description; train this fold again")
    return info.get("finished") is True


def is_begun(run: Path) -> bool:
    """Whether a run folder has an evaluated fold or a save."""
    return any((fold / FOLD_JSON).is_file() or any(fold.glob(f"{RESUME}/*")) for fold in fold_folders(run))


def digest_of(file: Path) -> str | None:
    """The hash of a file; none where it is missing."""
    return sha256(file) if file.is_file() else None


def check_weights(folder: Path, mend: str, digest: Callable[[Path], str | None] = digest_of) -> None:
    """Refuses a folder whose weights are missing, or are not the ones that its fold.json describes.

    An estimator's fold names further files, by their places in the run folder.
    """
    info = read_json(folder / FOLD_JSON)
    further = {folder.parent / name: each for name, each in info.get("files", {}).items()}
    for file, wanted in {folder / WEIGHTS: info.get("sha256"), **further}.items():
        if (found := digest(file)) is None or found != wanted:
            fault = "missing" if found is None else f"not the file that {FOLD_JSON} describes"
            raise Fb3Error(f"{file}: {fault}; {mend}")
