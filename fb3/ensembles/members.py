"""Members of an ensemble: out-of-fold predictions of run folders and CSVs, matched by id with the truths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.essays import read_essays
from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, parse_numbers, read_table, whole_numbers
from fb3.ensembles.comparison import split
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_competition, load_recipe
from fb3.runs.leaks import labels_of, recorded_leak
from fb3.runs.scores import TRUTH, caveats
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import OOF, RECIPE
from fb3.system.files import sha256
from fb3.system.progress import say
from fb3.targets.build import resolve, target_of
from fb3.targets.target import Probabilities, Target

_MEND = "; a member is a run folder, or a CSV with the ids and a column for each output"
_FEWEST = 20  # essays from which weights are fitted


@dataclass(frozen=True)
class MemberFile:
    """A member's file: its ids (N,), predictions (N, K), and fold numbers (N,) and truths (N, K) where it has them.

    leak: why its predictions know some truths, in words; empty for no reason.
    """

    path: Path
    ids: pd.Series
    predicted: np.ndarray
    folds: np.ndarray | None
    truth: np.ndarray | None
    leak: str


@dataclass(frozen=True)
class Members:
    """M members on the same N essays, by id in ascending order.

    recipe: names the target and the metric. tests: files of the members' predictions for the test essays, where given.
    predicted: (M, N, K). folds: (N,), those of all members, or of a split of the essays where `own_folds` is false.
    leaks: members that know some truths, and why, in words.
    """

    recipe: Recipe
    files: list[Path]
    tests: list[Path | None]
    ids: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    folds: np.ndarray
    own_folds: bool
    leaks: list[str]

    def some(self, places: Sequence[int]) -> "Members":
        """Some of the members, on the same essays."""
        files = [self.files[place] for place in places]
        leaks = [leak for leak in self.leaks if leak.startswith(tuple(f"{file}: " for file in files))]
        tests = [self.tests[place] for place in places]
        return replace(self, files=files, tests=tests, predicted=self.predicted[list(places)], leaks=leaks)


def read_members(
    paths: Sequence[str | Path],
    data: Path | None = None,
    recipe: str | Path | None = None,
    competition: str | None = None,
    allow_leaks: bool = False,
) -> Members:
    """Reads the members and the truths.

    Args:
        paths: run folders, or CSVs with the ids and a column for each output; further columns are ignored, except
            `fold` and truths in the form of a run's oof.csv. OOF.csv=TEST.csv names predictions for the test essays
            too.
        data: the folder with train.csv; none: the truths are those in the first member that has some.
        recipe, competition: name the target and the metric; neither: the first run folder's recipe does.
        allow_leaks: take members that learned from models which saw their validation essays.

    Raises:
        Fb3Error: a file without a column, with an id twice, with other ids than the first one, with cells that are no
            numbers or no probabilities, or with other truths; no recipe or no truths; a member leaks.
    """
    given = [_with_test(path) for path in paths]
    places, tests = [_run_of(place) for place, _ in given], [test for _, test in given]
    if len(places) < 2:
        raise Fb3Error("fb3 ensemble: give two members or more, run folders or CSVs")
    settings = _recipe_of(places, recipe, competition)
    groups: pd.Series | None = None
    known: tuple[object, pd.Series, np.ndarray] | None = None
    if data:
        essays = read_essays(data / settings.data.files.train, settings.data, target_of(settings), settings.folds)
        settings = resolve(settings, essays)
        source = stored_file(data / settings.data.files.train)
        known = source, essays[settings.data.id_column], target_of(settings).truths(essays).astype(np.float64)
        groups = essays[settings.folds.group_column] if settings.folds.group_column else None
    target = target_of(settings)
    if not target.columns:
        raise Fb3Error("task.classes: nothing names the classes; give --data DIR with the competition's train.csv")
    files = [_read_member(place, settings, target) for place in places]
    leaks = [f"{file.path}: {file.leak}" for file in files if file.leak]
    if leaks and not allow_leaks:
        raise Fb3Error(f"{leaks[0]}, and weights would favour it; leave it out, or give --allow-leaks")
    _tell_pseudo_labels(files)
    source, truth_ids, truth = known or _truths_of(files)
    ids = files[0].ids.sort_values()
    rows = match_ids(truth_ids, ids, source, files[0].path, "; are they of this competition?", subset=True)
    if len(ids) < _FEWEST:
        raise Fb3Error(f"{files[0].path}: {len(ids)} essays; weights want {_FEWEST} and more")
    if len(truth_ids) > len(ids):
        say(f"{len(truth_ids) - len(ids)} of {len(truth_ids)} essays in {source} have no prediction and are left out")
    aligned = [_aligned(file, ids, files[0].path, source, truth[rows]) for file in files]
    folds = _shared_folds(aligned)
    if own := folds is not None:
        numbers = folds
    else:
        numbers = split(len(ids), None if groups is None else groups.iloc[rows].tolist())
    predicted = np.stack([file.predicted for file in aligned])
    for test in filter(None, tests):
        _read_outputs(test, settings, target)
    places = [file.path for file in files]
    return Members(settings, places, tests, ids.to_numpy(), predicted, truth[rows], numbers, own, leaks)


def _tell_pseudo_labels(files: list["MemberFile"]) -> None:
    """Says which members learned from labels of models that did not see their validation essays, and from whose."""
    digests = {sha256(file.path): str(file.path.parent) for file in files}
    for file in files:
        if not file.leak and (teachers := labels_of(file.path.parent).get("teachers")):
            names = ", ".join(
                f"{digests[digest]}, a member" if digest in digests else path for path, digest in teachers.items()
            )
            say(f"{file.path.parent}: trained on pseudo-labels that were made for its own split, by {names}")


def _with_test(path: str | Path) -> tuple[Path, Path | None]:
    """A member and the file of its predictions for the test essays, given as OOF.csv=TEST.csv."""
    out_of_fold, _, test = str(path).partition("=")
    if not test or Path(path).exists():
        return Path(path), None
    return Path(out_of_fold), Path(test)


def _run_of(path: Path) -> Path:
    """The run folder whose oof.csv a path is; any other path as it is."""
    return path.parent if path.name == OOF and (path.parent / RECIPE).is_file() else path


def _recipe_of(places: list[Path], recipe: str | Path | None, competition: str | None) -> Recipe:
    if recipe:
        return load_recipe(recipe, competition=competition)
    if competition:
        return load_competition(competition)
    runs = [place for place in places if (place / RECIPE).is_file()]
    if not runs:
        raise Fb3Error(
            "fb3 ensemble: no run folder among the members, so nothing names ids, outputs and metric; give "
            "--competition NAME (see `fb3 competitions`) or --recipe FILE"
        )
    return load_recipe(runs[0] / RECIPE)


def _read_member(place: Path, recipe: Recipe, target: Target) -> MemberFile:
    path, identifier = (place / OOF if place.is_dir() else place), recipe.data.id_column
    if place.is_dir() and not path.is_file():
        raise Fb3Error(f"{place}: no {OOF} in it; give a run folder with a trained fold, or a CSV of predictions")
    table, predicted = _read_outputs(path, recipe, target)
    leak = ""
    if (place / RECIPE).is_file():
        own = load_recipe(place / RECIPE)
        leak = recorded_leak(place, own)
        if found := caveats(place, own):
            say(f"WARNING: {place}: its score is no CV: {'; '.join(found)}")
    folds = np.array(whole_numbers(table[FOLD_COLUMN], path)) if FOLD_COLUMN in table.columns else None
    truths = [TRUTH + column for column in target.columns]
    truth = parse_numbers(table, identifier, truths, path) if set(truths) <= set(table.columns) else None
    return MemberFile(path, table[identifier], predicted, folds, truth, leak)


def _read_outputs(path: Path, recipe: Recipe, target: Target) -> tuple[pd.DataFrame, np.ndarray]:
    """A file of predictions: its table, and the outputs (N, K)."""
    identifier, columns = recipe.data.id_column, list(target.columns)
    table = read_table(path, [identifier, *columns], _MEND)
    check_ids(table[identifier], path)
    predicted = parse_numbers(table, identifier, columns, path)
    outside = np.argwhere((predicted < 0) | (predicted > 1)) if isinstance(target, Probabilities) else []
    if len(outside):
        row, column = outside[0]
        raise Fb3Error(
            f"{path}: {predicted[row, column]} in row {row + 1} ({identifier} {table[identifier].iloc[row]}), column "
            f"{columns[column]}, is no probability; turn logits into probabilities first"
        )
    return table, predicted


def _truths_of(files: list[MemberFile]) -> tuple[object, pd.Series, np.ndarray]:
    for file in files:
        if file.truth is not None:
            return file.path, file.ids, file.truth
    raise Fb3Error("fb3 ensemble: no member holds the truths; give --data DIR with the competition's train.csv")


def _aligned(file: MemberFile, ids: pd.Series, first: Path, source: object, truth: np.ndarray) -> MemberFile:
    """A member's rows in the order of `ids`; refuses other ids and other truths, (N, K)."""
    mend = "; every member predicts the same essays: train the folds that are missing, or leave the member out"
    rows = match_ids(file.ids, ids, file.path, first, mend)
    folds, own = (None if each is None else each[rows] for each in (file.folds, file.truth))
    if own is not None and len(bad := np.flatnonzero((np.abs(own - truth) > 1e-4).any(1))):
        raise Fb3Error(
            f"{file.path}: its truths differ from {source} in {len(bad)} essays, first {ids.name} {ids.iloc[bad[0]]}; "
            "leave out a member of other data"
        )
    return MemberFile(file.path, ids, file.predicted[rows], folds, own, file.leak)


def _shared_folds(files: list[MemberFile]) -> np.ndarray | None:
    """The folds that all members have, (N,); none where they differ, are not known, or are a single one."""
    unknown = [str(file.path) for file in files if file.folds is None]
    first = pd.factorize(files[0].folds)[0] if not unknown else None
    others = [str(file.path) for file in files if unknown or not np.array_equal(pd.factorize(file.folds)[0], first)]
    if unknown or others:
        why = f"{unknown[0]} names no folds" if unknown else f"{others[0]} has other folds than {files[0].path}"
        say(f"{why}: weights are fitted and scored on a split of the essays")
        return None
    return files[0].folds if len(np.unique(first)) > 1 else None
