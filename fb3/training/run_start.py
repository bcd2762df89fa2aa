"""The start of a run: folder, split and folds checked, and the files written before the first step."""

import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fb3 import version
from fb3.data.essays import training_files
from fb3.data.folds import FoldSplit, fold_table, make_folds, read_folds
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.load import differences
from fb3.runs.fold_json import is_begun, is_finished
from fb3.system.file_names import ENCODER, ENVIRONMENT, LOCK, RECIPE, RESUME, encoder_files
from fb3.system.files import read_json, sha256, write_csv, write_json, write_text
from fb3.system.git import git_state
from fb3.system.progress import say

if TYPE_CHECKING:
    from fb3.training.session import Session

# What a run folder holds before its first evaluation: a start that failed there may be started over.
_HEAD = {"encoder", "scratch", RECIPE, "folds.csv", ENVIRONMENT, "log.jsonl", "fb3", LOCK}


_UNFINISHED = re.compile(r"fold\d+|\..*\.part")  # or what a killed process began to write


def splits_of(recipe: Recipe, essays: pd.DataFrame, data: Path, out: Path) -> list[FoldSplit]:
    """The splits of a run folder that has a fold or a save already, else new ones.

    Raises:
        Fb3Error: it is a run of another recipe or other data.
    """
    if not is_begun_run(out):
        return make_folds(essays, recipe)
    saved = load_recipe(out / RECIPE)
    if saved != recipe:
        differ = "; ".join(differences(recipe, saved))
        raise Fb3Error(f"{out}: holds a run of another recipe ({differ}); choose another --out")
    recorded = read_json(out / ENVIRONMENT)
    for key, file in training_files(recipe, data).items():
        if recorded.get(key) != sha256(file):
            raise Fb3Error(
                f"{out}: its folds were trained on another {file.name} than {file.parent}'s; choose another --out"
            )
    return read_folds(out / "folds.csv", essays, recipe.data.id_column)


def is_begun_run(out: Path) -> bool:
    """Whether a run folder has a fold or a save.

    Raises:
        Fb3Error: the folder holds something else.
    """
    if is_begun(out):
        return True
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if foreign := sorted(name for name in there - _HEAD if not _UNFINISHED.fullmatch(name)):
        raise Fb3Error(f"{out}: not empty and no run folder (it holds {foreign[:3]}); choose another --out")
    return False


def chosen_folds(splits: list[FoldSplit], folds: Sequence[int] | None, out: Path, resume: bool) -> list[FoldSplit]:
    """The wanted folds that are not trained yet.

    Raises:
        Fb3Error: there is no such fold, or none is left, unless it is to `resume`.
    """
    known = {split.fold: split for split in splits}
    wanted = list(known) if folds is None else list(dict.fromkeys(folds))
    if unknown := [fold for fold in wanted if fold not in known]:
        raise Fb3Error(f"--folds: no fold {unknown}; there are {list(known)}")
    done = [fold for fold in wanted if is_finished(out / f"fold{fold}")]
    left = [fold for fold in wanted if fold not in done]
    if done and not left and not resume:
        others = [fold for fold in known if not is_finished(out / f"fold{fold}")]
        mend = f"give --folds {','.join(map(str, others))}" if others else "choose another --out"
        raise Fb3Error(f"{out}: folds {done} are trained already; {mend}")
    if done:
        say(f"{out}: folds {done} are trained already; left are {left or 'none'}")
    elif resume and not any(any((out / f"fold{fold}" / RESUME).glob("[0-9]*")) for fold in left):
        say(f"{out}: nothing is saved there; starts afresh")
    return [known[fold] for fold in left]


def write_head(session: "Session", data: Path, splits: list[FoldSplit], digests: dict[str, str], begun: bool) -> None:
    """What a run folder holds before the first step."""
    import torch

    from fb3.training.session import versions

    recipe, out = session.recipe, session.out
    write_text(recipe.to_yaml(), out / RECIPE)
    write_csv(fold_table(session.essays, splits, recipe.data.id_column), out / "folds.csv")
    environment = {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if session.accelerator.device.type == "cuda" else platform.machine(),
        "precision": session.precision,
        "processes": session.accelerator.num_processes,
        "seeds": {"train": recipe.train.seed, "folds": recipe.folds.seed},  # a fold's: train's and its number
        "git": {"here": git_state(Path()), "fb3": git_state(Path(version.__file__).parent, tracked="version.py")},
        "data": str(data.resolve()),
        **digests,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "encoder": {name: sha256(out / ENCODER / name) for name in encoder_files(bool(recipe.model.stitch))},
    }
    if begun:  # other folds, or the first part of this one, come from other sessions
        before = read_json(out / ENVIRONMENT)
        environment["earlier"] = [*before.pop("earlier", []), before]
    write_json(environment, out / ENVIRONMENT)
