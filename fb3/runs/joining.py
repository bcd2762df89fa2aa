"""Folds of one run, trained in several sessions or on several machines, joined into one run folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, read_table, whole_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.runs.decide import write_scores
from fb3.runs.fold_json import check_weights, digest_of, ids_hash, is_finished
from fb3.runs.identity import Identity, recorded
from fb3.runs.run_folder import Run, own_prepare, run_of
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import (
    ENCODER,
    ENSEMBLE,
    ENVIRONMENT,
    FEATURES,
    FOLD_JSON,
    OOF,
    PREPARE,
    RECIPE,
    RESUME,
    SECOND,
    fold_folder,
)
from fb3.system.files import atomic_folder, link_or_copy, read_json, write_csv, write_json


@raises_disk_full("out")
def merge(runs: Sequence[str | Path], out: str | Path) -> Run:
    """Joins run folders of the same recipe, data and split, each with other folds, into the new folder `out`.

    The runs stay as they are. Weights are hard links where the file system has them, so they are not stored twice.

    Raises:
        Fb3Error: the runs do not fit together, a fold is there twice or not at all, or a file is damaged.
    """
    runs, out = [Path(run) for run in runs], Path(out)
    if out.exists():
        raise Fb3Error(f"{out}: is there already; choose another --out")
    if len(runs) < 2:
        raise Fb3Error("fb3 merge: give two run folders or more")
    if ensembles := [run for run in runs if (run / ENSEMBLE).is_file()]:
        raise Fb3Error(f"{ensembles[0]}: an ensemble has no folds to join; make one of all members with `fb3 ensemble`")
    recipe = load_recipe(runs[0] / RECIPE)
    table = read_table(runs[0] / "folds.csv", [recipe.data.id_column, FOLD_COLUMN])
    own_prepare(runs[0], recipe)
    for other in runs[1:]:
        _check_same(runs[0], other)
    check_ids(table[recipe.data.id_column], runs[0] / "folds.csv")
    homes = _homes(runs, sorted({*whole_numbers(table[FOLD_COLUMN], runs[0] / "folds.csv")} - {-1}))
    for fold, run in homes.items():
        _check_fold(fold_folder(run, fold), table[table[FOLD_COLUMN] == str(fold)][recipe.data.id_column])
    with atomic_folder(out) as aside:
        for name in (RECIPE, "folds.csv", *([PREPARE] if recipe.data.prepare else [])):
            shutil.copyfile(runs[0] / name, aside / name)
        for name in (ENCODER, FEATURES, "scratch"):
            if (runs[0] / name).is_dir():
                shutil.copytree(runs[0] / name, aside / name)
        for fold, run in homes.items():
            without = shutil.ignore_patterns(RESUME, ".*")
            to = fold_folder(aside, fold)
            shutil.copytree(fold_folder(run, fold), to, ignore=without, copy_function=link_or_copy)
        parts = [_out_of_fold(run, recipe, [f for f, home in homes.items() if home == run]) for run in runs]
        joined = pd.concat(parts).astype({FOLD_COLUMN: int}).sort_values([FOLD_COLUMN, recipe.data.id_column])
        write_csv(joined, aside / OOF)
        write_scores(aside, recipe)
        environments = [read_json(run / ENVIRONMENT) for run in runs]
        write_json({**environments[0], "merged": environments}, aside / ENVIRONMENT)
        logs = [(run / "log.jsonl").read_bytes() for run in runs if (run / "log.jsonl").is_file()]
        (aside / "log.jsonl").write_bytes(b"".join(logs))
    return run_of(out)


def _check_same(first: Path, other: Path) -> None:
    """Refuses runs that are no parts of one run: another recipe, other data, another split or another tokenizer."""
    if differ := _identity(first).differences(_identity(other)):
        raise Fb3Error(f"{other}: trained with another {differ} than {first}; leave it out, or compare their files")
    for name in ("tokenizer.json", f"{SECOND}/tokenizer.json"):
        here, there = (run / ENCODER / name for run in (first, other))
        if digest_of(here) != digest_of(there):
            raise Fb3Error(f"{there}: another tokenizer than {here}; was the backbone another one?")


def _identity(run: Path) -> Identity:
    """A run's identity, its split into folds included: folds of different splits share essays."""
    made = recorded(run)
    columns = [made.recipe.data.id_column, FOLD_COLUMN]
    split = read_table(run / "folds.csv", columns)[columns].to_numpy().tolist()
    return Identity(made.recipe, {**made.ingredients, "split into folds": split})


def _homes(runs: Sequence[Path], wanted: Sequence[int]) -> dict[int, Path]:
    """The run that each wanted fold is taken from; refuses one that is trained in two runs, or in none."""
    homes: dict[int, Path] = {}
    for run in runs:
        for fold in (fold for fold in wanted if is_finished(fold_folder(run, fold))):
            if fold in homes:
                raise Fb3Error(f"fold {fold} is trained in {homes[fold]} and in {run}; leave one of the two out")
            homes[fold] = run
    if missing := [fold for fold in wanted if fold not in homes]:
        begun = [str(path) for run in runs for fold in missing if (path := fold_folder(run, fold)).is_dir()]
        hint = f" ({', '.join(begun)}: not trained to the end)" if begun else ""
        folds = ",".join(map(str, missing))
        raise Fb3Error(f"folds {missing} are trained in none of the runs{hint}; train them with --folds {folds}")
    return dict(sorted(homes.items()))


def _check_fold(folder: Path, ids: pd.Series) -> None:
    check_weights(folder, "copy the run again")
    if ids_hash(ids) != read_json(folder / FOLD_JSON).get("valid_ids_sha256"):
        raise Fb3Error(f"{folder}: validated on other essays than folds.csv says; copy the run again")


def _out_of_fold(run: Path, recipe: Recipe, folds: list[int]) -> pd.DataFrame:
    """A run's out-of-fold predictions for some folds, as texts: no digit of a number changes."""
    if not folds:
        raise Fb3Error(f"{run}: has no trained fold; leave it out")
    table = read_table(run / OOF, [recipe.data.id_column, FOLD_COLUMN])
    rows = table[table[FOLD_COLUMN].isin([str(fold) for fold in folds])]
    folds_csv = read_table(run / "folds.csv", [recipe.data.id_column, FOLD_COLUMN])
    wanted = folds_csv[folds_csv[FOLD_COLUMN].isin([str(fold) for fold in folds])]
    ids = (each[recipe.data.id_column] for each in (rows, wanted))
    match_ids(*ids, run / OOF, f"folds {folds} of {run / 'folds.csv'}", "; copy the run again")
    return rows
