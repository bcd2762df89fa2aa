"""Checks a run, in its own folder or in a bundle, against its own hashes and scores."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, read_numbers, read_table, whole_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.metric import FileMetricSettings
from fb3.runs.decide import read_decision
from fb3.runs.fold_json import check_weights, ids_hash, is_finished
from fb3.runs.run_folder import Member, own_prepare
from fb3.runs.scores import TRUTH, caveats, scores_of
from fb3.runs.shared_files import recorded_files, shared_folder
from fb3.system.file_names import (
    DECISION,
    ENVIRONMENT,
    FOLD_JSON,
    OOF,
    PREPARE,
    RECIPE,
    RESUME,
    fold_folders,
    fold_number,
)
from fb3.system.files import read_json, sha256
from fb3.targets.build import target_of
from fb3.verification.check_data import check_essays
from fb3.verification.findings import RunCheck

# Largest difference of a recomputed score. oof.csv and scores.json hold every digit of a float, so machines differ only
# by the order of sums, about 1e-16; one prediction among a thousand that changed by 1e-5 moves the score by more.
TOLERANCE = 1e-9


def check_run(run: RunCheck) -> None:
    """Makes all checks of a run; a check that needs a broken file is reported as not made."""
    recipe = table = None
    with run.check(RECIPE):
        recipe = load_recipe(run.path / RECIPE)
    if recipe:
        with run.check("folds.csv: each essay once, in the recipe's folds"):
            table = _read_folds(run, recipe)
        _check_encoder(run, recipe)
        trusted = not recipe.data.prepare or _check_prepare(run, recipe)
    finished = _check_folds(run, recipe, table)
    if recipe is None or table is None:
        run.add("not made", f"{OOF}, scores.json, truths: they need {RECIPE} and folds.csv")
        return
    with suppress(Fb3Error):  # the same error is a fault already
        for caveat in caveats(run.path, recipe) if finished else ():
            run.add("note", f"scores.json: no CV: {caveat}")
    if finished or (run.path / OOF).is_file():
        before = len(run.report.faults)
        with run.check(f"{OOF}: the validation essays of folds {[*finished]}, all numbers"):
            _check_out_of_fold(run, recipe, table, finished)
        if len(run.report.faults) == before:
            own = recipe.metric.file if isinstance(recipe.metric, FileMetricSettings) else None
            if own is None or Path(own).is_file():
                with run.check(f"scores.json, {FOLD_JSON}: recompute from {OOF} within {TOLERANCE:g}"):
                    _check_scores(run, recipe, finished)
            else:
                run.add("not made", f"scores.json, {FOLD_JSON}: they need the metric's own file, {own}, from here")
            if (run.path / DECISION).is_file():
                with run.check(f"{DECISION}: fitted on this {OOF}"):
                    read_decision(run.path)
        else:
            run.add("not made", f"scores.json, {FOLD_JSON}: they need a sound {OOF}")
    if run.data is None:
        where = f" ({ENVIRONMENT} says {run.recorded.get('data')})" if run.recorded else ""
        again = ", predictions made again" if run.essays else ""
        name = recipe.data.files.train
        run.add("not made", f"{name} by hash, its folds and truths{again}: its folder is unknown{where}; give --data")
        return
    if not trusted:
        run.add("not made", f"folds and truths: they need a sound {PREPARE}, which is not run as it is")
        return
    check_essays(run, recipe, table, finished)
    if run.essays:
        _predict_again(run, recipe, finished)


def _read_folds(run: RunCheck, recipe: Recipe) -> pd.DataFrame:
    """Reads folds.csv and checks that it holds the recipe's folds; fold numbers become int."""
    path = run.path / "folds.csv"
    table = read_table(path, [recipe.data.id_column, FOLD_COLUMN])
    check_ids(table[recipe.data.id_column], path)
    table[FOLD_COLUMN] = whole_numbers(table[FOLD_COLUMN], path)
    there, count = sorted(set(table[FOLD_COLUMN])), recipe.folds.count
    wanted = list(range(count)) if recipe.folds.holdout is None else [-1, 0]
    if there == wanted:
        return table
    if recipe.folds.holdout is not None or there != list(range(len(there))):
        raise Fb3Error(f"{path}: holds folds {there}, the recipe makes {wanted}; {run.again}")
    if run.data is None:
        run.add("not made", f"folds.csv: {len(there)} folds, folds.count={count}; right only for a `fold` column")
    return table


def _check_encoder(run: RunCheck, recipe: Recipe) -> None:
    """Checks that the encoder's files are there, by hash where environment.json has their hashes."""
    hashes = (run.recorded or {}).get("encoder", {})
    with run.check(f"{shared_folder(recipe)}: {'by hash' if hashes else 'there'}"):
        for name, file in recorded_files(run.path, recipe).items():
            if (found := run.digest(file)) is None:
                run.add("FAULT", f"{file}: missing; {run.again}")
            elif found != hashes.get(name, found):
                run.add("FAULT", f"{file}: not the file that {ENVIRONMENT} describes; {run.again}")


def _check_prepare(run: RunCheck, recipe: Recipe) -> bool:
    """Whether the run's own steps are what they were, by hash; only then may they run."""
    before = len(run.report.faults)
    with run.check(f"{PREPARE}: by hash"):
        file = own_prepare(run.path, recipe)
        if run.digest(file) != sha256(file):
            raise Fb3Error(f"{file}: not the file that was packed; {run.again}")
    return len(run.report.faults) == before


def _check_folds(run: RunCheck, recipe: Recipe | None, table: pd.DataFrame | None) -> dict[int, Path]:
    """Checks each fold's folder; returns the folders of the folds that were trained to their end, by number."""
    folders = {fold_number(folder): folder for folder in [*(run.packed or []), *fold_folders(run.path)]}
    known = None if table is None else sorted(set(table[FOLD_COLUMN]) - {-1})
    finished = {}
    for number, folder in sorted(folders.items()):
        if known is not None and number not in known:
            run.add("FAULT", f"{folder}: folds.csv knows no fold {number}; {run.again}")
            continue
        try:
            whole = is_finished(folder)
        except Fb3Error as error:
            run.add("FAULT", str(error))
            continue
        if whole:
            finished[number] = folder
            with run.check(f"{folder.name}: weights, essays and seed as in {FOLD_JSON}"):
                _check_fold(run, folder, number, recipe, table)
        elif run.packed is not None:
            run.add("FAULT", f"{folder}: no fold that was trained to its end; {run.again}")
        else:
            _check_saves(run, folder)
    if run.packed is None and (never := sorted(set(known or []) - folders.keys())):
        run.add("note", f"folds {never}: not trained")
    return finished


def _check_fold(run: RunCheck, folder: Path, number: int, recipe: Recipe | None, table: pd.DataFrame | None) -> None:
    info, described = read_json(folder / FOLD_JSON), folder / FOLD_JSON
    mend = f"{run.again}, or delete {folder} and train it again" if run.packed is None else run.again
    for file in [described, *sorted(folder.glob(f"step*/{FOLD_JSON}"))]:  # train.keep=all
        try:
            check_weights(file.parent, mend, run.digest)
        except Fb3Error as error:
            run.add("FAULT", str(error))
    if info["fold"] != number:
        run.add("FAULT", f"{described}: is of fold {info['fold']}; {mend}")
    if recipe and info.get("seed") != recipe.train.seed + number:
        wanted = recipe.train.seed + number
        run.add("FAULT", f"{described}: seed {info.get('seed')}, {RECIPE} makes it {wanted}; {mend}")
    if table is not None:
        ids = table[table[FOLD_COLUMN] == number][recipe.data.id_column]
        if ids_hash(ids) != info.get("valid_ids_sha256"):
            run.add("FAULT", f"{folder}: validated on other essays than folds.csv says; {mend}")


def _check_saves(run: RunCheck, folder: Path) -> None:
    """Checks the saves of a fold that was not trained to its end."""
    from fb3.runs.save_folder import list_saves, read_save

    saves = list_saves(folder / RESUME)
    state = f"saves of steps {[int(save.name) for save in saves]}" if saves else "no save"
    run.add("note", f"{folder.name}: not trained to its end, {state}; `fb3 train` goes on")
    for save in saves:
        with run.check(f"{folder.name}/{RESUME}/{save.name}: whole"):
            try:
                read_save(save)
            except Fb3Error as error:
                raise Fb3Error(f"{error}; delete {save}, `fb3 train` takes the one before") from None


def _check_out_of_fold(run: RunCheck, recipe: Recipe, table: pd.DataFrame, finished: dict[int, Path]) -> None:
    path, identifier, columns = run.path / OOF, recipe.data.id_column, list(target_of(recipe).columns)
    found = read_numbers(path, identifier, [*[TRUTH + column for column in columns], *columns])
    rows = table[table[FOLD_COLUMN].isin(list(finished))]
    have, want = (list(zip(each[identifier], each[FOLD_COLUMN], strict=True)) for each in (found, rows))
    mend = f"; {run.again}{', or let `fb3 train` end the fold' if run.packed is None else ''}"
    match_ids(have, want, path, f"the finished folds {[*finished]} of folds.csv", mend)


def _check_scores(run: RunCheck, recipe: Recipe, finished: dict[int, Path]) -> None:
    again = scores_of(run.path, recipe)
    files = {run.path / "scores.json": again}
    files |= {folder / FOLD_JSON: again["folds"][str(number)] for number, folder in finished.items()}
    for file, wanted in files.items():
        said = read_json(file)
        if file.name == FOLD_JSON:
            said, wanted = ({key: each[key] for key in ("score", "columns")} for each in (said, wanted))
        if differ := list(_differences(said, wanted)):
            more = f" and {len(differ) - 2} more" if len(differ) > 2 else ""
            run.add("FAULT", f"{file}: {'; '.join(differ[:2])}{more}; one of the two was changed, {run.again}")


def _differences(said: Any, again: Any, key: str = "") -> Iterator[str]:
    """Describes where a JSON file's content differs from its recomputed content."""
    if isinstance(said, dict) and isinstance(again, dict):
        for name in dict.fromkeys([*said, *again]):
            if name in said and name in again:
                yield from _differences(said[name], again[name], f"{key}.{name}".lstrip("."))
            else:
                yield f"{key}.{name} is only in {'the file' if name in said else OOF}".lstrip(".")
    elif isinstance(said, float) and isinstance(again, float):
        if not abs(said - again) <= TOLERANCE:
            yield f"{key} is {said:.10g}, {OOF} gives {again:.10g}"
    elif said != again:
        yield f"{key} is {said!r}, {OOF} gives {again!r}"


def _predict_again(run: RunCheck, recipe: Recipe, finished: dict[int, Path]) -> None:
    from fb3.bundles.parity import replay_fold

    member = Member(run.path.name, run.path, recipe, [*finished.values()])
    for folder in finished.values():
        with run.check(f"{folder.name}: {run.essays} essays predicted again as in {OOF}"):
            replay_fold(member, folder, run.data, run.essays, run.half)
