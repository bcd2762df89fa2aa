"""The start of a run: the folder, the split and the folds are checked, and the first files written."""

import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fb3 import version
from fb3.data.folds import FoldSplit, fold_table, read_folds
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.runs.fold_json import is_begun, is_finished
from fb3.runs.identity import Identity, named_files, recorded
from fb3.runs.provenance import seen_before, text_hashes
from fb3.runs.run_folder import copy_prepare
from fb3.runs.shared_files import recorded_files
from fb3.system.file_names import (
    ENCODER,
    ENVIRONMENT,
    FEATURES,
    IMAGE_ENCODER,
    LOCK,
    PREPARE,
    RECIPE,
    RESUME,
    fold_folder,
    fold_number,
)
from fb3.system.files import read_json, sha256, write_csv, write_json, write_text
from fb3.system.git import git_state
from fb3.system.progress import say

if TYPE_CHECKING:
    from fb3.training.session import Session

# Names in a run folder before its first evaluation: a start that failed may be started over in its folder.
_FIRST_FILES = {ENCODER, IMAGE_ENCODER, FEATURES, "scratch", RECIPE, PREPARE, "folds.csv", ENVIRONMENT, "log.jsonl"}
_FIRST_FILES |= {"fb3", LOCK}
_PARTIAL = re.compile(r"\..*\.part")  # left by a process that was killed while it wrote


def refuse_foreign_folder(out: Path) -> None:
    """Refuses a folder that holds something else than a run, before anything is written there."""
    there = [] if is_begun(out) or not out.is_dir() else sorted(out.iterdir())
    unknown = [path.name for path in there if path.name not in _FIRST_FILES and fold_number(path) is None]
    if foreign := [name for name in unknown if not _PARTIAL.fullmatch(name)]:
        raise Fb3Error(f"{out}: not empty and no run folder (it holds {foreign[:3]}); choose another --out")


def continued_splits(recipe: Recipe, essays: pd.DataFrame, digests: dict[str, str], out: Path) -> list[FoldSplit]:
    """The splits of a run that goes on, read from its folds.csv: another version of the splitter may split otherwise.

    Raises:
        Fb3Error: the run was made with another recipe or other data.
    """
    if differ := Identity(recipe, named_files(digests, recipe)).differences(recorded(out)):
        raise Fb3Error(
            f"{out}: was trained with another {differ}; choose another --out, or give its own recipe and --data"
        )
    return read_folds(out / "folds.csv", essays, recipe.data.id_column)


def folds_to_train(splits: list[FoldSplit], folds: Sequence[int] | None, out: Path, resume: bool) -> list[FoldSplit]:
    """The wanted folds that are not trained yet.

    Raises:
        Fb3Error: there is no such fold, or all are trained and `resume` is off.
    """
    known = {split.fold: split for split in splits}
    wanted = list(known) if folds is None else list(dict.fromkeys(folds))
    if unknown := [fold for fold in wanted if fold not in known]:
        raise Fb3Error(f"--folds: no fold {unknown}; there are {list(known)}")
    done = [fold for fold in wanted if is_finished(fold_folder(out, fold))]
    left = [fold for fold in wanted if fold not in done]
    if done and not left and not resume:
        others = [fold for fold in known if not is_finished(fold_folder(out, fold))]
        mend = f"give --folds {','.join(map(str, others))}" if others else "choose another --out"
        raise Fb3Error(f"{out}: folds {done} are trained already; {mend}")
    if done:
        say(f"{out}: folds {done} are trained already; left are {left or 'none'}")
    elif resume and not any(any((fold_folder(out, fold) / RESUME).glob("[0-9]*")) for fold in left):
        say(f"{out}: nothing is saved there; starts afresh")
    return [known[fold] for fold in left]


def write_first_files(session: "Session", data: Path, splits: list[FoldSplit], begun: bool) -> None:
    """Writes the files that a run folder holds before its first step."""
    recipe, out = session.recipe, session.out
    copy_prepare(recipe, out)
    if recipe.data.prepare and sha256(out / PREPARE) != session.digests["prepare_sha256"]:
        raise Fb3Error(f"{recipe.data.prepare}: changed while the run began; start it again")
    write_text(recipe.with_prepare(PREPARE).to_yaml(), out / RECIPE)
    write_csv(fold_table(session.essays, splits, recipe.data.id_column), out / "folds.csv")
    write_environment(session, data, begun)


def tell_seen_texts(session: "Session", splits: Sequence[FoldSplit]) -> None:
    """Says how many validation essays' texts the backbone was pretrained on, where it is one of `fb3 pretrain`."""
    from fb3.training.encoder_folder import with_local_backbone

    recipe = session.recipe
    backbone = with_local_backbone(recipe, session.out).model.backbone
    if seen_before(backbone, []) is not None:
        hashes = np.array(text_hashes(session.essays, recipe.data.text_columns()))
        for split in splits:
            texts = set(hashes[split.valid_rows])
            seen = seen_before(backbone, texts)
            words = f"the backbone was pretrained on {seen} of {len(texts)} validation texts, without their scores"
            session.log.event("pretrained", f"fold {split.fold}: {words}", fold=split.fold, seen=seen, texts=len(texts))


def write_environment(session: "Session", data: Path, begun: bool) -> None:
    """Writes environment.json; keeps the one of an earlier start within it."""
    import torch

    from fb3.training.session import versions

    recipe, out = session.recipe, session.out
    environment = {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if session.accelerator.device.type == "cuda" else platform.machine(),
        "precision": session.precision,
        "processes": session.accelerator.num_processes,
        "seeds": {"train": recipe.train.seed, "folds": recipe.folds.seed},  # a fold adds its number to the first
        "git": {"here": git_state(Path()), "fb3": git_state(Path(version.__file__).parent, tracked="version.py")},
        "data": str(data.resolve()),
        **session.digests,
        **({"pseudo": session.pseudo.record} if session.pseudo else {}),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "encoder": {name: sha256(file) for name, file in recorded_files(out, recipe).items()},
    }
    if begun:
        before = read_json(out / ENVIRONMENT)
        environment["earlier"] = [*before.pop("earlier", []), before]
    write_json(environment, out / ENVIRONMENT)
