"""Folds of one run, trained in several sessions or on several machines, joined into one run folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fb3.data.tables import FOLD_COLUMN, check_ids, read_table, whole_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.load import differences
from fb3.runs.fold_json import ids_hash, is_finished
from fb3.runs.run_folder import Run, run_of
from fb3.runs.scores import scores_of
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import ENCODER, ENVIRONMENT, FOLD_JSON, OOF, RECIPE, RESUME, SECOND, WEIGHTS
from fb3.system.files import atomic_folder, link_or_copy, read_json, sha256, write_csv, write_json


@raises_disk_full("out")
def merge(runs: Sequence[str | Path], out: str | Path) -> Run:
    """Joins run folders of the same recipe, data and split, each with other folds, into the new folder `out`.

    The runs stay as they are; where the file system can, the weights are not stored twice.

    Raises:
        Fb3Error: they do not fit together, a fold is there twice or not at all, or a file is damaged.
    """
    runs, out = [Path(run) for run in runs], Path(out)
    if out.exists():
        raise Fb3Error(f"{out}: is there already; choose another --out")
    if len(runs) < 2:
        raise Fb3Error("fb3 merge: give two run folders or more")
    recipe = load_recipe(runs[0] / RECIPE)
    table = read_table(runs[0] / "folds.csv", [recipe.data.id_column, FOLD_COLUMN])
    for other in runs[1:]:
        _check_same(runs[0], other, recipe, table)
    check_ids(table[recipe.data.id_column], runs[0] / "folds.csv")
    homes = _homes(runs, sorted({*whole_numbers(table[FOLD_COLUMN], runs[0] / "folds.csv")} - {-1}))
    for fold, run in homes.items():
        _check_fold(run / f"fold{fold}", table[table[FOLD_COLUMN] == str(fold)][recipe.data.id_column])
    with atomic_folder(out) as aside:
        for name in (RECIPE, "folds.csv"):
            shutil.copyfile(runs[0] / name, aside / name)
        for name in (ENCODER, "scratch"):
            if (runs[0] / name).is_dir():
                shutil.copytree(runs[0] / name, aside / name)
        for fold, run in homes.items():
            without = shutil.ignore_patterns(RESUME, ".*")
            shutil.copytree(run / f"fold{fold}", aside / f"fold{fold}", ignore=without, copy_function=link_or_copy)
        parts = [_out_of_fold(run, recipe, [f for f, home in homes.items() if home == run]) for run in runs]
        joined = pd.concat(parts).astype({FOLD_COLUMN: int}).sort_values([FOLD_COLUMN, recipe.data.id_column])
        write_csv(joined, aside / OOF)
        write_json(scores_of(aside, recipe), aside / "scores.json")
        environments = [read_json(run / ENVIRONMENT) for run in runs]
        write_json({**environments[0], "merged": environments}, aside / ENVIRONMENT)
        logs = [(run / "log.jsonl").read_bytes() for run in runs if (run / "log.jsonl").is_file()]
        (aside / "log.jsonl").write_bytes(b"".join(logs))
    return run_of(out)


def _check_same(first: Path, other: Path, recipe: Recipe, table: pd.DataFrame) -> None:
    """Same recipe, data, split and tokenizer."""
    if differ := differences(recipe, load_recipe(other / RECIPE)):
        raise Fb3Error(f"{other}: another recipe than {first}'s ({'; '.join(differ)})")
    if _data_of(first) != _data_of(other):
        raise Fb3Error(f"{other}: trained on other data than {first} (train.csv, or task.uda.file)")
    if not table.equals(read_table(other / "folds.csv", list(table.columns))[list(table.columns)]):
        raise Fb3Error(f"{other}: split into other folds than {first}; see both folds.csv")
    for name in ("tokenizer.json", f"{SECOND}/tokenizer.json"):
        here, there = (run / ENCODER / name for run in (first, other))
        if len({sha256(path) if path.is_file() else None for path in (here, there)}) > 1:
            raise Fb3Error(f"{there}: another tokenizer than {here}; was the backbone another one?")


def _data_of(run: Path) -> dict[str, Any]:
    """The hashes of the files that a run was trained on."""
    digests = {key: value for key, value in read_json(run / ENVIRONMENT).items() if key.endswith("_sha256")}
    if not digests:
        raise Fb3Error(f"{run / ENVIRONMENT}: does not say what the run was trained on; train it again")
    return digests


def _homes(runs: Sequence[Path], wanted: Sequence[int]) -> dict[int, Path]:
    """The run that each fold is taken from."""
    homes: dict[int, Path] = {}
    for run in runs:
        for fold in (fold for fold in wanted if is_finished(run / f"fold{fold}")):
            if fold in homes:
                raise Fb3Error(f"fold {fold} is trained in {homes[fold]} and in {run}; leave one of the two out")
            homes[fold] = run
    if missing := [fold for fold in wanted if fold not in homes]:
        begun = [str(run / f"fold{fold}") for run in runs for fold in missing if (run / f"fold{fold}").is_dir()]
        hint = f" ({', '.join(begun)}: not trained to the end)" if begun else ""
        folds = ",".join(map(str, missing))
        raise Fb3Error(f"folds {missing} are trained in none of the runs{hint}; train them with --folds {folds}")
    return dict(sorted(homes.items()))


def _check_fold(folder: Path, ids: pd.Series) -> None:
    info = read_json(folder / FOLD_JSON)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != info.get("sha256"):
        raise Fb3Error(f"{folder / WEIGHTS}: missing, or not the file that {FOLD_JSON} describes; copy the run again")
    if ids_hash(ids) != info.get("valid_ids_sha256"):
        raise Fb3Error(f"{folder}: validated on other essays than folds.csv says; copy the run again")


def _out_of_fold(run: Path, recipe: Recipe, folds: list[int]) -> pd.DataFrame:
    """The rows of some folds, cells as they stand."""
    if not folds:
        raise Fb3Error(f"{run}: has no trained fold; leave it out")
    table = read_table(run / OOF, [recipe.data.id_column, FOLD_COLUMN])
    rows = table[table[FOLD_COLUMN].isin([str(fold) for fold in folds])]
    folds_csv = read_table(run / "folds.csv", [recipe.data.id_column, FOLD_COLUMN])
    wanted = folds_csv[folds_csv[FOLD_COLUMN].isin([str(fold) for fold in folds])]
    if set(rows[recipe.data.id_column]) != set(wanted[recipe.data.id_column]) or len(rows) != len(wanted):
        raise Fb3Error(f"{run / OOF}: not the essays of folds {folds}; copy the run again")
    return rows
