"""Teachers: runs whose models label essays, and which of their models never saw a fold's validation essays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fb3.data.tables import FOLD_COLUMN, read_table, whole_numbers
from fb3.ensembles.ensemble_file import Weights, check_run, member_path, packed_runs
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.fold_json import check_weights, ids_hash, is_finished
from fb3.runs.leaks import recorded_leak
from fb3.runs.run_folder import Member, own_prepare
from fb3.runs.scores import pseudo_settings
from fb3.system.file_names import ENSEMBLE, FOLD_JSON, OOF, RECIPE, fold_folder, fold_folders, fold_number
from fb3.system.files import read_json, sha256
from fb3.targets.build import target_of

Split = dict[str, int]  # fold by id, −1 for essays that every fold trains on


@dataclass(frozen=True)
class Teacher:
    """A run that labels.

    member: its folder, recipe and trained folds. split: its own. taught: whether it learned from pseudo-labels itself.
    weights: its weight in each column; none: it stands alone. by_fold: weights fitted without a fold, by its number.
    """

    member: Member
    split: Split
    taught: bool
    weights: Weights | None
    by_fold: dict[int, Weights]

    def model_for(self, fold: int, valid: set[str], first: Path) -> int | None:
        """The position among the member's folds of a model that saw none of the essays `valid`.

        None where it is not trained. A model saw all essays of its run but those it validated on.

        Raises:
            Fb3Error: each model of the run saw some.
        """
        homes = {self.split.get(identifier) for identifier in valid}
        if not self.taught:  # labels of its own may come from models that saw an essay unknown here
            homes -= {None}
        numbers = [fold_number(folder) for folder in self.member.folds]
        if not homes:
            return 0
        if len(homes) > 1 or None in homes or -1 in homes:
            raise Fb3Error(
                f"{self.member.path}: has another split than {first}, and each of its models saw validation essays of "
                f"fold {fold}; leave it out, or train it on that split: put the fold numbers of {first}/folds.csv into "
                "train.csv as a column `fold`"
            )
        home = homes.pop()
        return numbers.index(home) if home in numbers else None

    def columns_weights(self, fold: int, columns: Sequence[str]) -> np.ndarray:
        """Its weights (K,) in the labels for a fold."""
        weights = self.by_fold.get(fold, self.weights)
        return np.ones(len(columns)) if weights is None else np.array([weights.get(each, 0.0) for each in columns])

    def provenance(self, models: dict[int, int]) -> dict[str, Any]:
        """The teacher's entry in pseudo.json; `models` holds the position of the model used, by fold."""
        run, folds = self.member.path, self.member.folds
        return {
            "path": str(run),
            "oof_sha256": sha256(run / OOF),
            "folds_sha256": sha256(run / "folds.csv"),
            "weights": self.weights,
            "weights_without_fold": {str(fold): each for fold, each in self.by_fold.items()},
            "models": {
                str(fold): {"folder": folds[at].name, "sha256": read_json(folds[at] / FOLD_JSON).get("sha256")}
                for fold, at in models.items()
            },
        }


def read_teachers(path: Path) -> list[Teacher]:
    """The runs that a run folder or an ensemble's folder means, in the ensemble's order; weightless ones are left out.

    Raises:
        Fb3Error: no run folder; an ensemble whose members cannot all predict; a run whose folds do not match its
            folds.csv; a run that leaks: it was distilled, or trained on pseudo-labels made for another split.
    """
    if not (path / ENSEMBLE).is_file():
        return [_read_teacher(path, None, {})]
    weighed, content = packed_runs([path]), read_json(path / ENSEMBLE, {"members": list})
    same = content.get("folds") == "of all members"
    teachers = []
    for member in content["members"]:
        run, own = member_path(member["path"], path), member.get("weights_without_fold") or {}
        by_fold = {int(fold): weights for fold, weights in own.items()} if same else {}
        if run not in weighed and any(any(weights.values()) for weights in by_fold.values()):
            check_run(run, member.get("sha256"), path / ENSEMBLE)
        elif run not in weighed:
            continue
        teachers.append(_read_teacher(run, member["weights"], by_fold))
    return _with_own_numbers(teachers, read_split_of(path))


def _with_own_numbers(teachers: list[Teacher], numbers: Split) -> list[Teacher]:
    """The teachers; without weights by fold where the first one's folds have other numbers than the ensemble's."""
    if all(teachers[0].split.get(identifier) == fold for identifier, fold in numbers.items()):
        return teachers
    return [Teacher(each.member, each.split, each.taught, each.weights, {}) for each in teachers]


def read_split_of(run: Path) -> Split:
    """The split in a folder's folds.csv."""
    path = run / "folds.csv"
    identifier = load_recipe(run / RECIPE).data.id_column
    table = read_table(path, [identifier, FOLD_COLUMN])
    return dict(zip(table[identifier], whole_numbers(table[FOLD_COLUMN], path), strict=True))


def _read_teacher(run: Path, weights: Weights | None, by_fold: dict[int, Weights]) -> Teacher:
    if not (run / RECIPE).is_file() or (run / ENSEMBLE).is_file():
        nested = (run / ENSEMBLE).is_file()
        what = "an ensemble within an ensemble; give one of all runs" if nested else "no run folder"
        raise Fb3Error(f"{run}: {what}; labels need models: a folder that `fb3 train` or `fb3 ensemble` wrote")
    own_prepare(run, recipe := load_recipe(run / RECIPE))
    if not recipe.data.target_columns or not target_of(recipe).columns:
        raise Fb3Error(f"{run / RECIPE}: does not name the classes; train the run again")
    folds, split = [folder for folder in fold_folders(run) if is_finished(folder)], read_split_of(run)
    if not folds:
        raise Fb3Error(f"{run}: no fold in it was trained to its end; run `fb3 train` first")
    for folder in folds:
        check_weights(folder, "copy the run again")
        valid = [identifier for identifier, fold in split.items() if fold_folder(run, fold) == folder]
        if ids_hash(valid) != read_json(folder / FOLD_JSON).get("valid_ids_sha256"):
            raise Fb3Error(f"{folder}: validated on other essays than folds.csv says; copy the run again")
    if leak := recorded_leak(run, recipe):
        raise Fb3Error(f"{run}: {leak}, so its labels would carry truths over; leave it out")
    return Teacher(Member(run.name, run, recipe, folds), split, bool(pseudo_settings(run, recipe)), weights, by_fold)
