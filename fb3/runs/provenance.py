"""The provenance of a pretrained encoder: hashes of the texts that it has seen, beside it in pretraining.json."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fb3.errors import Fb3Error
from fb3.system.file_names import CONFIG, FRAME_WEIGHTS, PROVENANCE, TOKENIZER, WEIGHTS
from fb3.system.files import read_json, sha256, write_json

_DIGITS = 16  # digits of a hash: among a million texts two are alike by chance once in 37 million encoders
_FILES = (CONFIG, TOKENIZER, WEIGHTS, FRAME_WEIGHTS)  # the last where frames stood beside the texts


def text_hashes(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """A short hash of each essay's texts, whatever the white space between its words; empty where there is none."""
    texts = (" ".join(" ".join(cells).split()) for cells in table[list(columns)].fillna("").itertuples(index=False))
    return [_short_hash(text) if text else "" for text in texts]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def write_provenance(folder: Path, seen: Iterable[str], held_out: Iterable[str], more: dict[str, Any]) -> None:
    """Writes the provenance of the encoder in a folder, last of its files.

    Args:
        folder: a backbone folder.
        seen, held_out: hashes of the texts that it learned from, and of the ones that chose its best state.
        more: further facts, such as scores.
    """
    texts = {"texts": sorted(set(seen)), "held_out": sorted(set(held_out))}
    files = {name: sha256(folder / name) for name in _FILES if (folder / name).is_file()}
    write_json({**more, "files": files, **texts}, folder / PROVENANCE)


def read_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of a pretrained encoder; an Fb3Error where it is not of the form that fb3 writes."""
    return dict(read_json(folder / PROVENANCE, {"files": dict, "texts": list, "held_out": list}))


def changed_files(folder: Path) -> list[str]:
    """The faults of an encoder's files, by their hashes."""
    faults = []
    for name, digest in read_provenance(folder)["files"].items():
        if not (folder / name).is_file():
            faults.append(f"{folder / name}: missing; copy the encoder again")
        elif sha256(folder / name) != digest:
            faults.append(f"{folder / name}: not the file that {PROVENANCE} describes; copy the encoder again")
    return faults


def seen_before(backbone: str, hashes: Iterable[str]) -> int | None:
    """How many of some texts an encoder was pretrained on or chosen by; none for a backbone that does not say so."""
    folder = Path(backbone)
    if not (folder / PROVENANCE).is_file():
        return None
    provenance = read_provenance(folder)
    return len({*provenance["texts"], *provenance["held_out"]} & {*hashes})


def refuse_provenance(out: Path) -> None:
    """Refuses a folder that holds a pretrained encoder already."""
    if (out / PROVENANCE).is_file():
        raise Fb3Error(f"{out}: holds a pretrained encoder already; choose another --out")
