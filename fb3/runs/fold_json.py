"""fold.json: what a fold folder says of itself. No torch."""

import hashlib
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error
from fb3.system.file_names import FOLD_JSON, RESUME
from fb3.system.files import read_json, write_json


def ids_hash(ids: Any) -> str:
    """The hash of a set of ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()


def mark_finished(folder: Path) -> None:
    """Says in fold.json that the fold was trained to its end, and not only to its last evaluation."""
    write_json({**read_json(folder / FOLD_JSON), "finished": True}, folder / FOLD_JSON)


def is_finished(folder: Path) -> bool:
    """True for a fold folder that was trained to its end."""
    if not (folder / FOLD_JSON).is_file():
        return False
    info = read_json(folder / FOLD_JSON)
    if type(info.get("fold")) is not int or f"fold{info['fold']}" != folder.name:
        raise Fb3Error(f"{folder / FOLD_JSON}: not a fold's description; train this fold again")
    return info.get("finished") is True


def is_begun(run: Path) -> bool:
    """True for a run folder that has a fold or a save."""
    return any(run.glob(f"fold*/{FOLD_JSON}")) or any(run.glob(f"fold*/{RESUME}/*"))
