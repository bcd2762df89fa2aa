"""Checks a run against the essays it was trained on."""

from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.essays import read_essays, training_files
from fb3.data.ids import match_ids
from fb3.data.tables import FOLD_COLUMN, read_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.runs.fold_json import ids_hash
from fb3.runs.scores import TRUTH
from fb3.system.file_names import ENVIRONMENT, FOLD_JSON, OOF
from fb3.system.files import read_json, sha256
from fb3.targets.build import target_of
from fb3.verification.findings import RunCheck


def check_essays(run: RunCheck, recipe: Recipe, table: pd.DataFrame, finished: dict[int, Path]) -> None:
    """Checks the training files by their hashes, and the essays' split and targets against folds.csv and oof.csv.

    Args:
        run: the run; its data folder is known.
        recipe: the run's recipe.
        table: the content of folds.csv.
        finished: the trained folds' folders, by number.
    """
    files = training_files(recipe, run.data)
    files.pop("prepare_sha256", None)  # checked before, because reading the essays runs it
    for key, file in files.items() if run.recorded is not None else ():
        with run.check(f"{file}: by hash"):
            if sha256(file) != run.recorded.get(key):
                raise Fb3Error(
                    f"{file}: not the file that the run was trained on (its hash is not {ENVIRONMENT}'s {key}); give "
                    "that one's folder with --data DIR"
                )
    train = recipe.data.files.train
    with run.check(f"folds.csv and the truths in {OOF}: as in {train}"):
        from fb3.data.folds import take_sample

        essays = take_sample(read_essays(run.data / train, recipe.data, target_of(recipe), recipe.folds), recipe)
        _check_split(run, recipe, essays, table, finished)
        if (run.path / OOF).is_file():
            _check_truths(run, recipe, essays)


def _check_split(
    run: RunCheck, recipe: Recipe, essays: pd.DataFrame, table: pd.DataFrame, finished: dict[int, Path]
) -> None:
    from fb3.data.folds import fold_table, make_folds, refuse_split_groups

    path, identifier = run.path / "folds.csv", recipe.data.id_column
    try:
        match_ids(table[identifier], essays[identifier], path, run.data / recipe.data.files.train)
    except Fb3Error as error:
        run.add("FAULT", str(error))
        return
    numbers = table.set_index(identifier)[FOLD_COLUMN].loc[essays[identifier]].to_numpy()
    refuse_split_groups(essays, numbers, recipe, str(path), run.again)
    made = fold_table(essays, make_folds(essays, recipe), identifier).set_index(identifier)[FOLD_COLUMN]
    moved = table[made.loc[table[identifier]].to_numpy() != table[FOLD_COLUMN].to_numpy()]
    if moved.empty:
        return
    text = f"{len(moved)} essays are in other folds than the recipe puts them, first {moved[identifier].iloc[0]}"
    if set(made) == set(table[FOLD_COLUMN]) and _folds_confirm(table, identifier, finished):
        run.add("note", f"folds.csv: {text}; but the run was trained that way: another version of the splitter made it")
    else:
        run.add("FAULT", f"{path}: {text}; {run.again}")


def _folds_confirm(table: pd.DataFrame, identifier: str, finished: dict[int, Path]) -> bool:
    """Whether every fold was trained with this folds.csv, by the hash of validation ids in its fold.json."""
    folds = {number: rows[identifier] for number, rows in table.groupby(FOLD_COLUMN) if number >= 0}
    return folds.keys() == finished.keys() and all(
        read_json(finished[number] / FOLD_JSON).get("valid_ids_sha256") == ids_hash(ids)
        for number, ids in folds.items()
    )


def _check_truths(run: RunCheck, recipe: Recipe, essays: pd.DataFrame) -> None:
    path, identifier, target = run.path / OOF, recipe.data.id_column, target_of(recipe)
    columns = target.columns
    truths = [TRUTH + column for column in columns]
    found = read_numbers(path, identifier, truths)
    found = found[found[identifier].isin(set(essays[identifier]))]  # `_check_split` names the other ids
    said = found[truths].to_numpy()
    true = target.truths(essays.set_index(identifier).loc[found[identifier]]).astype(np.float64)
    wrong = np.argwhere(said != true)  # exactly, since both hold float32 numbers
    if len(wrong):
        row, column = wrong[0]
        raise Fb3Error(
            f"{path}: {len(wrong)} truths differ from {run.data / recipe.data.files.train}, first {columns[column]} of "
            f"{found[identifier].iloc[row]}: {said[row, column]}, there {true[row, column]}; {run.again}, or give the "
            "folder of the run's essays with --data DIR"
        )
