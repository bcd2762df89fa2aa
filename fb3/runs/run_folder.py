"""A run folder: a trained run with its scores, or a member of an ensemble with its folds."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fb3.data.ids import match_ids
from fb3.data.joins import read_split
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.data import FilesSettings
from fb3.runs.scores import read_scores
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import ENVIRONMENT, OOF, PREPARE, RECIPE
from fb3.system.files import atomic_file, read_json, sha256
from fb3.targets.build import target_of
from fb3.targets.metrics import Score


@dataclass(frozen=True)
class Member:
    """A run in a bundle: its name, its folder, its recipe, its fold folders, and its weight in each column.

    weights: none where all runs weigh the same.
    """

    name: str
    path: Path
    recipe: Recipe
    folds: list[Path]
    weights: Mapping[str, float] | None = None


def in_turn(members: Sequence[Member]) -> list[tuple[Member, int]]:
    """Run and position of each fold: the first fold of each run, then the second of each, and so on."""
    most = max((len(member.folds) for member in members), default=0)
    return [(member, k) for k in range(most) for member in members if k < len(member.folds)]


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, the score of all out-of-fold predictions in it, and its folds' numbers."""

    path: Path
    score: Score
    folds: list[int]


def run_of(out: Path) -> Run:
    """A run folder with a trained fold, as `train` returns it."""
    scores = read_scores(out / "scores.json")
    lower_is_better = target_of(load_recipe(out / RECIPE)).metric.lower_is_better
    return Run(out, Score(scores["score"], scores["columns"], lower_is_better), sorted(map(int, scores["folds"])))


def copy_prepare(recipe: Recipe, out: Path) -> None:
    """Copies the file that data.prepare names into the folder `out`, which uses its own copy from then on."""
    if recipe.data.prepare:
        with atomic_file(out / PREPARE) as aside:
            shutil.copyfile(recipe.data.prepare, aside)


def own_prepare(run: Path, recipe: Recipe) -> Path | None:
    """A run's own copy of the file that data.prepare names, for a run folder or a run in a bundle; none: it has none.

    Raises:
        Fb3Error: the copy is missing or lies elsewhere, or it is not the one that the run was trained with.
    """
    if not recipe.data.prepare:
        return None
    file = run / PREPARE
    if not file.is_file() or file.resolve() != Path(recipe.data.prepare).resolve():
        raise Fb3Error(f"{file}: missing, or not what data.prepare in {RECIPE} names; copy the run again")
    if (run / ENVIRONMENT).is_file() and read_json(run / ENVIRONMENT).get("prepare_sha256") != sha256(file):
        raise Fb3Error(f"{file}: not the file that the run was trained with, by {ENVIRONMENT}; copy the run again")
    return file


def training_file(run: Path, data: Path) -> Path:
    """The file in `data` that holds a run's training essays; train.csv where the run's recipe cannot be read."""
    try:
        name = load_recipe(run / RECIPE).data.files.train
    except Fb3Error:
        name = FilesSettings().train
    return stored_file(data / name)


def reading_recipe(members: Sequence[Member]) -> Recipe:
    """The recipe by which essays are read once for several runs: one with frames where there is one."""
    return next((member.recipe for member in members if member.recipe.data.frames), members[0].recipe)


def training_essays(run: Path, member: Member, data: Path | None) -> pd.DataFrame:
    """The training essays' texts by id; an Fb3Error where their folder is not known, or lacks the file."""
    if data is None:
        recorded = read_json(run / ENVIRONMENT).get("data") if (run / ENVIRONMENT).is_file() else None
        if not isinstance(recorded, str) or not training_file(run, Path(recorded)).is_file():
            raise Fb3Error(
                f"{run}: the essays it was trained on are not where {ENVIRONMENT} says ({recorded}); give their folder "
                "with --data DIR, or, to pack it unproven, --no-parity"
            )
        data = Path(recorded)
    own_prepare(run, member.recipe)
    settings = member.recipe.data
    columns = list(settings.input_columns())
    table = read_split(data / settings.files.train, settings, "train", [settings.id_column, *columns])
    return table.set_index(settings.id_column)[columns]


def check_known(ids: pd.Series, texts: pd.DataFrame, run: Path) -> None:
    """Refuses texts that lack some of the ids in a run's oof.csv; the error names some."""
    mend = "; give the folder of the essays it was trained on with --data DIR"
    name = load_recipe(run / RECIPE).data.files.train
    match_ids(texts.index, ids, name, run / OOF, mend, subset=True)
