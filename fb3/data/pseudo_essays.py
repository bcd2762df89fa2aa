"""Essays that models have labelled, read from the folder of `fb3 pseudo` and checked against a run's split.

essays.csv    the essays, as they were given, without those that a labelled essay equals
fold<k>.csv   ids and labels for fold k, of models that never saw the fold's validation essays
folds.csv     the split that the labels were made for: id → fold of the labelled essays
oof.csv       the teacher's out-of-fold predictions of the labelled essays, for distillation
pseudo.json   provenance, and the hashes of these files
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fb3.data.essays import read_essays
from fb3.data.folds import FoldSplit
from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, parse_numbers, read_table, whole_numbers
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.system.file_names import OOF, PSEUDO
from fb3.system.files import read_json, sha256

ESSAYS, FOLDS = "essays.csv", "folds.csv"
_AGAIN = "make it again with `fb3 pseudo`"


@dataclass(frozen=True)
class PseudoEssays:
    """P essays with labels of models.

    folder: where they are. recipe: the run's. columns: K outputs. essays: the table of `read_essays`, P rows.
    teacher: (N, K) out-of-fold predictions of the labelled essays, NaN where there is none; none: not wanted.
    record: what environment.json says of them.
    """

    folder: Path
    recipe: Recipe
    columns: Sequence[str]
    essays: pd.DataFrame
    teacher: np.ndarray | None
    record: dict[str, Any]

    def of_fold(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (Q,) among the P essays, and the labels (Q, K) float32, that a fold may learn."""
        if self.essays.empty:
            return np.zeros(0, np.int64), np.zeros((0, len(self.columns)), np.float32)
        path = self.folder / f"fold{fold}.csv"
        ids, labels = _read_labels(path, self.recipe, self.columns)
        rows = match_ids(
            self.essays[self.recipe.data.id_column], ids, self.folder / ESSAYS, path, f"; {_AGAIN}", subset=True
        )
        return rows, labels


def read_pseudo_essays(
    recipe: Recipe, data: Path | None, essays: pd.DataFrame, splits: Sequence[FoldSplit], columns: Sequence[str]
) -> PseudoEssays | None:
    """Reads the folder that `pseudo.folder` names; none where the recipe names none.

    Args:
        recipe: the run's.
        data: the folder of further files that essays are joined with; none: beside essays.csv.
        essays: the N labelled essays.
        splits: the folds to train.
        columns: the target's K outputs.

    Raises:
        Fb3Error: a file is missing, was changed, or has other columns; labels were made for another split, unless
            pseudo.allow_leaks; an essay is a labelled one; nothing to learn from.
    """
    settings, identifier = recipe.pseudo, recipe.data.id_column
    if not settings:
        return None
    folder = Path(settings.folder)
    content = read_provenance(folder)
    _check_split(folder, recipe, essays, splits)
    table = essays.iloc[:0]
    if ESSAYS in content["files"]:
        table = read_essays(folder / ESSAYS, recipe.data, split=content["read_as"], folder=data)
        if both := sorted({*table[identifier]} & {*essays[identifier]}):
            raise Fb3Error(f"{folder / ESSAYS}: {len(both)} essays are training essays, first {both[0]}; {_AGAIN}")
        for split in splits:
            if f"fold{split.fold}.csv" not in content["files"]:
                raise Fb3Error(
                    f"{folder}: has no labels for fold {split.fold}, which its teachers were not trained on; train "
                    f"that fold of theirs and {_AGAIN}"
                )
    elif settings.use != "distil":
        raise Fb3Error(f"{folder}: holds no essays, and pseudo.use={settings.use} learns from them; give --essays FILE")
    teacher = _read_teacher(folder, recipe, essays, splits, columns) if settings.use == "distil" else None
    kept = [identifier, *recipe.data.input_columns()]
    record = {
        "sha256": sha256(folder / PSEUDO),
        "use": settings.use,
        "split": content["split"],
        "leaks": settings.leak() or None,
        "teachers": {teacher["path"]: teacher["oof_sha256"] for teacher in content["teachers"]},
    }
    return PseudoEssays(folder, recipe, columns, table[kept], teacher, record)


def with_pseudo_essays(essays: pd.DataFrame, pseudo: PseudoEssays | None) -> pd.DataFrame:
    """The N labelled essays and behind them the P others, which have nothing but ids and texts."""
    return essays if pseudo is None or pseudo.essays.empty else pd.concat([essays, pseudo.essays], ignore_index=True)


def read_provenance(folder: Path) -> dict[str, Any]:
    """The content of a folder's pseudo.json; an Fb3Error where there is none, or a file is not the one it names."""
    if not (folder / PSEUDO).is_file():
        raise Fb3Error(f"pseudo.folder={folder}: no {PSEUDO} in it; give the --out of `fb3 pseudo`")
    content = read_json(folder / PSEUDO, {"files": dict, "split": str, "teachers": list})
    for name, digest in content["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise Fb3Error(f"{folder / name}: missing, or changed since `fb3 pseudo` wrote it; {_AGAIN}")
    return content


def _check_split(folder: Path, recipe: Recipe, essays: pd.DataFrame, splits: Sequence[FoldSplit]) -> None:
    """Refuses labels of models that saw a fold's validation essays, as far as the split tells."""
    path, ids = folder / FOLDS, essays[recipe.data.id_column].to_numpy()
    table = read_table(path, [recipe.data.id_column, FOLD_COLUMN])
    there = dict(zip(table[recipe.data.id_column], whole_numbers(table[FOLD_COLUMN], path), strict=True))
    same = {*there} == {*ids} and all(
        {*ids[split.valid_rows]} == {each for each, fold in there.items() if fold == split.fold} for split in splits
    )
    if same and recipe.pseudo.allow_leaks:
        raise Fb3Error("pseudo.allow_leaks=true does nothing, as the labels were made for this split; leave it out")
    if not same and not recipe.pseudo.allow_leaks:
        raise Fb3Error(
            f"{folder}: its labels were made for another split than this run's, so the models that made them saw "
            "validation essays; train the teacher on this split and make them again, or set pseudo.allow_leaks=true "
            "for a score that is no CV"
        )


def _read_labels(path: Path, recipe: Recipe, columns: Sequence[str]) -> tuple[pd.Series, np.ndarray]:
    identifier = recipe.data.id_column
    mend = f"; labels are predictions of this target: {_AGAIN}"
    table = read_table(path, [identifier, *columns], mend)
    check_ids(table[identifier], path)
    return table[identifier], parse_numbers(table, identifier, columns, path).astype(np.float32)


def _read_teacher(
    folder: Path, recipe: Recipe, essays: pd.DataFrame, splits: Sequence[FoldSplit], columns: Sequence[str]
) -> np.ndarray:
    """The teacher's predictions (N, K); refuses a training essay without one."""
    ids, values = _read_labels(folder / OOF, recipe, columns)
    known = pd.DataFrame(values, index=ids).reindex(essays[recipe.data.id_column])
    teacher = known.to_numpy(np.float32)
    missing = np.isnan(teacher).any(1)
    if len(lacking := [row for split in splits for row in split.train_rows if missing[row]]):
        raise Fb3Error(
            f"{folder / OOF}: {len(set(lacking))} training essays have no prediction of the teacher, first "
            f"{essays[recipe.data.id_column].iloc[lacking[0]]}; train all folds of the teacher, without folds.holdout"
        )
    return teacher
