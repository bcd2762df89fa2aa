"""`fb3 pseudo`: labels essays with models that never saw a fold's validation essays, and writes them by fold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fb3.data.essays import read_essays
from fb3.data.folds import split_hash
from fb3.data.pseudo_essays import ESSAYS, FOLDS
from fb3.data.tables import FOLD_COLUMN, read_numbers, read_table
from fb3.ensembles.blend_forms import averaged, averaging_of
from fb3.ensembles.ensemble_file import packed_blend
from fb3.errors import Fb3Error
from fb3.prediction.member_inputs import encode
from fb3.pseudo_labels.label_filters import agreeing, check_filters, confident, hardened
from fb3.pseudo_labels.near_duplicates import SIMILAR, near_duplicates
from fb3.pseudo_labels.teachers import Split, Teacher, read_teachers
from fb3.recipe import Recipe
from fb3.recipe.data import Split as Read
from fb3.runs.run_folder import training_essays
from fb3.system.compressed_files import stored_file
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import OOF, PSEUDO, fold_number
from fb3.system.files import atomic_folder, sha256, write_csv, write_json
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.version import __version__


class Filters(NamedTuple):
    """Filters of labels, see `label_filters`: hard ones in the place of soft ones; two shares, none: no filter."""

    hard: bool = False
    agreement: float | None = None
    confidence: float | None = None


class Unlabelled(NamedTuple):
    """Essays to label: their file's rows as they were given, the ids, how the file is read, and what was removed."""

    rows: pd.DataFrame
    ids: np.ndarray
    read_as: Read
    removed: dict[str, Any]


@raises_disk_full("out")
def label_essays(
    path: str | Path,
    out: str | Path,
    essays: str | Path | None = None,
    data: Path | None = None,
    filters: Filters | None = None,
) -> list[str]:
    """Labels essays with a run or an ensemble, and writes the new folder `out` (see `fb3.data.pseudo_essays`).

    Args:
        path: a run folder, or an ensemble's folder.
        out: the folder.
        essays: a CSV of essays with the id and text columns; none: the teacher's predictions of the labelled essays
            alone, for distillation.
        data: the folder with train.csv, whose essays are removed; none: the one that the run was trained on.
        filters: decide which labels are kept.

    Returns:
        Lines for a reader.

    Raises:
        Fb3Error: see `read_teachers` and `read_essays`; also `out` is there already, a filter that the target cannot
            have, no essay left.
    """
    path, out, filters = Path(path), Path(out), filters or Filters()
    if out.exists():
        raise Fb3Error(f"{out}: is there already; choose another --out")
    teachers = read_teachers(path)
    first = teachers[0]
    recipe, split = first.member.recipe, first.split
    for other in teachers[1:]:
        if (there := target_of(other.member.recipe).columns) != target_of(recipe).columns:
            raise Fb3Error(f"{other.member.path}: predicts {there}, {first.member.path} {target_of(recipe).columns}")
    if essays is None and any(filters):
        raise Fb3Error("--hard, --agreement and --confidence are for essays to label; give --essays, or leave them out")
    check_filters(recipe, len(teachers), *filters)
    models = _models(teachers) if essays else [{} for _ in teachers]
    unlabelled = _read_unlabelled(Path(essays), first, data) if essays else None
    with atomic_folder(out) as aside:
        _write_teacher(path, recipe, split, aside)
        counts: dict[str, int] = {}
        if unlabelled:
            write_csv(unlabelled.rows, aside / ESSAYS)
            folder = data or Path(essays).parent
            counts = _write_labels(teachers, models, unlabelled, filters, folder, packed_blend([path]), aside)
        content = {
            "fb3": __version__,
            "split": split_hash([*split], [*split.values()]),
            "labels": "hard" if filters.hard else "soft",
            "agreement": filters.agreement,
            "confidence": filters.confidence,
            "kept": counts,
            "read_as": unlabelled.read_as if unlabelled else None,
            "essays": unlabelled.removed if unlabelled else None,
            "teachers": [each.provenance(used) for each, used in zip(teachers, models, strict=True)],
            "files": {file.name: sha256(file) for file in sorted(aside.iterdir())},
        }
        write_json(content, aside / PSEUDO)
    return [*_told(unlabelled, counts), f"{out}: written"]


def _models(teachers: Sequence[Teacher]) -> list[dict[int, int]]:
    """For each teacher the position of the model that labels for each fold; folds that lack a model are left out."""
    split, first = teachers[0].split, teachers[0].member.path
    numbers = sorted({*split.values()} - {-1})
    valid = {fold: {each for each, home in split.items() if home == fold} for fold in numbers}
    found = [{fold: each.model_for(fold, valid[fold], first) for fold in numbers} for each in teachers]
    lacking = [fold for fold in numbers if any(models[fold] is None for models in found)]
    if lacking:
        say(f"folds {lacking} get no labels, because their models are not trained to their end")
    return [{fold: at for fold, at in models.items() if fold not in lacking} for models in found]


def _read_unlabelled(path: Path, first: Teacher, data: Path | None) -> Unlabelled:
    """The essays of a file without the labelled ones, by id and by text."""
    recipe, identifier = first.member.recipe, first.member.recipe.data.id_column
    read_as: Read = "test" if path.name == recipe.data.files.test else "train"
    essays = read_essays(path, recipe.data, split=read_as, folder=data)
    labelled = training_essays(first.member.path, first.member, data)
    known = essays[identifier].isin(labelled.index).to_numpy()
    # Texts alone do not say that two items with frames are one: many have the same title, or none.
    alike = {} if recipe.data.frames else near_duplicates(*(_whole_texts(each, recipe) for each in (essays, labelled)))
    ids, others = essays[identifier].to_numpy(), labelled.index.to_numpy()
    left = np.array([row for row in range(len(ids)) if not known[row] and row not in alike], np.int64)
    if not len(left):
        raise Fb3Error(f"{path}: each of its {len(ids)} essays is a labelled one; give others")
    table = read_table(path, [identifier])
    removed = {
        "path": str(path),
        "sha256": sha256(stored_file(path)),
        "rows": len(ids),
        "labelled_ids": ids[known].tolist(),
        "similarity": SIMILAR,
        "near_duplicates": {
            ids[row]: {"of": others[other], "similarity": round(similarity, 4)}
            for row, (other, similarity) in sorted(alike.items())
            if not known[row]
        },
    }
    return Unlabelled(table[table[identifier].isin(ids[left])], ids[left], read_as, removed)


def _whole_texts(essays: pd.DataFrame, recipe: Recipe) -> list[str]:
    """All texts of each essay, joined: where there are several, one of them may stand in many essays."""
    return [" ".join(texts) for texts in essays[list(recipe.data.text_columns())].itertuples(index=False, name=None)]


def _write_teacher(path: Path, recipe: Recipe, split: Split, out: Path) -> None:
    """Writes the split, and the teacher's out-of-fold predictions."""
    identifier, columns = recipe.data.id_column, list(target_of(recipe).columns)
    write_csv(pd.DataFrame({identifier: [*split], FOLD_COLUMN: [*split.values()]}), out / FOLDS)
    write_csv(read_numbers(path / OOF, identifier, columns)[[identifier, *columns]], out / OOF)


def _write_labels(
    teachers: Sequence[Teacher],
    models: Sequence[dict[int, int]],
    unlabelled: Unlabelled,
    filters: Filters,
    folder: Path,
    blend: dict[str, Any],
    out: Path,
) -> dict[str, int]:
    """Writes the labels of each fold, the teachers' predictions averaged as inference does, and returns how many."""
    recipe, counts = teachers[0].member.recipe, {}
    target = target_of(recipe)
    columns, identifier = list(target.columns), recipe.data.id_column
    averaging = averaging_of(blend, columns, target.exclusive, len(teachers))
    predicted = [
        _predict(teacher, used, unlabelled, out / ESSAYS, folder)
        for teacher, used in zip(teachers, models, strict=True)
    ]
    for fold in models[0]:
        each = np.stack([of_model[used[fold]] for of_model, used in zip(predicted, models, strict=True)])  # (M, P, K)
        weights = np.stack([teacher.columns_weights(fold, columns) for teacher in teachers])  # (M, K)
        if not weights.sum(0).all():
            raise Fb3Error(f"fold {fold}: no teacher has weight in some column; run `fb3 ensemble` again")
        labels = target.clip(averaged(averaging, each, weights))
        kept = np.ones(len(labels), bool)
        if filters.agreement is not None:
            kept &= agreeing(each, filters.agreement)
        if filters.confidence is not None:
            kept &= confident(labels, filters.confidence, target.exclusive)
        if not kept.any():
            raise Fb3Error(f"fold {fold}: the filters keep none of {len(kept)} essays; give a lower --confidence")
        labels = hardened(labels, recipe) if filters.hard else labels
        table = pd.DataFrame(labels[kept].astype(np.float32), columns=columns)
        table.insert(0, identifier, unlabelled.ids[kept])
        write_csv(table, out / f"fold{fold}.csv")
        counts[str(fold)] = int(kept.sum())
    return counts


def _predict(
    teacher: Teacher, models: dict[int, int], unlabelled: Unlabelled, essays: Path, folder: Path
) -> dict[int, np.ndarray]:
    """The predictions (P, K) of each model that labels, by its position, in the order of the ids."""
    from fb3.prediction.fold_prediction import predict_fold
    from fb3.system.devices import pick_device

    member, identifier, device = teacher.member, teacher.member.recipe.data.id_column, str(pick_device())
    table = read_essays(essays, member.recipe.data, split=unlabelled.read_as, folder=folder)
    table = table.set_index(identifier, drop=False).loc[unlabelled.ids]
    encoded = encode(member, table)
    out = {}
    for at in sorted({*models.values()}):
        say(f"{member.path}: fold {fold_number(member.folds[at])} labels {len(table)} essays")
        predictions = predict_fold(member, at, encoded, unlabelled.ids, device)
        row = {each: number for number, each in enumerate(predictions.ids)}
        out[at] = target_of(member.recipe).clip(predictions.values)[[row[each] for each in unlabelled.ids]]
    return out


def _told(unlabelled: Unlabelled | None, counts: dict[str, int]) -> list[str]:
    if not unlabelled:
        return ["no essays: for pseudo.use=distil alone"]
    removed = unlabelled.removed
    same, alike = len(removed["labelled_ids"]), removed["near_duplicates"]
    begin = f"{removed['rows']} essays; {same} have the id of a labelled one and {len(alike)} nearly the text of one"
    shown = ", ".join(f"{one} of {other['of']}" for one, other in list(alike.items())[:3])
    kept = ", ".join(f"{count} for fold {fold}" for fold, count in counts.items())
    return [begin + (f" ({shown}): removed" if alike else ""), f"labels: {kept}"]
