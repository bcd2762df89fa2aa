"""Guesses at a recipe's settings from a competition's tables, each with its reason."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fb3.data.column_guess import guess_columns
from fb3.data.tables import FOLD_COLUMN, to_floats
from fb3.errors import Fb3Error
from fb3.initial_recipe.competition_tables import CompetitionTable, CompetitionTables
from fb3.initial_recipe.frame_guess import frame_files

_LABEL = re.compile("label|class|categor|type|emotion|sentiment|topic|lang|target$", re.IGNORECASE)
_CLASS = re.compile("class|categor", re.IGNORECASE)
_GROUP = re.compile(r"(id|prompt|group|author|user|essay|document|source|topic|anchor|question)s?$", re.IGNORECASE)
_STEPS = 20  # most different values of a scale with steps; folds are cut from more by their quantiles
_WIDE = 3.0  # standard deviation of numbers above which a loss of them wants another scale
IMAGES = "openai/clip-vit-base-patch32"
_FULL = 0.4  # share of cells above which a column of texts, such as those read in a picture, is worth reading
_WHOLE = 12  # most different whole numbers that are taken for grades, or for labels where the column may be a scale


class Setting(NamedTuple):
    """A setting, the reason for it, whether that is sure, and whether it is only suggested, in a comment."""

    key: str
    value: Any
    why: str
    sure: bool = True
    suggested: bool = False


def guess_settings(tables: CompetitionTables) -> list[Setting]:
    """Guesses the names of the files, the columns, the kind of the target, and the metric.

    Raises:
        Fb3Error: no column can be the id, the text or the target.
    """
    train, test, sample = tables.train.table, tables.test.table, tables.sample_columns()
    shared = train[[name for name in train.columns if name in test.columns]]
    first = [name for name in sample[:1] if name in shared and shared[name].is_unique]
    identifier = first[0] if first else guess_columns(shared).id
    text = guess_columns(shared.drop(columns=identifier or [])).text  # ids may be longer than phrases
    for what, name in (("another id in each row", identifier), ("texts", text)):
        if name is None:
            raise Fb3Error(
                f"{tables.train.name} and {tables.test.name} share the columns {list(shared)}, none with {what}; "
                "add one to both files, or write a recipe that names the column"
            )
    target = _target([name for name in train.columns if name not in (identifier, text)], tables)
    return [
        *_files(tables),
        _identifier(identifier, tables),
        *_texts(identifier, text, shared, tables),
        *_frames(identifier, tables),
        *target,
        *_groups(train, {identifier, text, *sample, *target[0].value}, tables),
    ]


def _files(tables: CompetitionTables) -> list[Setting]:
    names = {"train": tables.train.name, "test": tables.test.name}
    names["sample"] = tables.sample.name if tables.sample else None
    usual = {"train": "train.csv", "test": "test.csv", "sample": "sample_submission.csv"}
    rows = f"{len(tables.train.table)} rows to train on, {len(tables.test.table)} to predict"
    if joins := [{"file": each.name.replace("train", "{split}"), "on": key} for each, key in _joined(tables)]:
        names["joins"] = joins
    return [] if names == usual else [Setting("data.files", names, f"the names in the folder; {rows}")]


def _joined(tables: CompetitionTables) -> Iterator[tuple[CompetitionTable, str]]:
    """The further tables with one row for each value of a column of train, and that column."""
    train = tables.train.table
    for each in tables.further:
        keys = [name for name in each.table if name in train and each.table[name].is_unique]
        for key in [name for name in keys if {*train[name]} <= {*each.table[name]}][:1]:
            yield each, key


def _identifier(name: str, tables: CompetitionTables) -> Setting:
    first = name in tables.sample_columns()[:1]
    why = f"another value in each row{', and the first column of the sample submission' if first else ''}"
    return Setting("data.id_column", name, why, sure=first)


def _texts(identifier: str, text: str, shared: pd.DataFrame, tables: CompetitionTables) -> list[Setting]:
    """The column of the longest texts, and a template where further columns may belong to the text."""
    length = shared[text].str.len().mean()
    others = {name: shared[name].str.len().mean() for name in shared if name not in (identifier, text, FOLD_COLUMN)}
    others = {name: size for name, size in others.items() if _is_text(name, shared[name])}
    alike = [name for name, size in others.items() if size > length / 3]
    why = f"the longest texts, {length:.0f} characters in the mean"
    found = [Setting("data.text_column", text, why, sure=not alike)]
    further = [name for each, _ in _joined(tables) for name in each.table if _is_text(name, each.table[name])]
    others |= dict.fromkeys(name for name in further if name not in shared)
    if others and text.isidentifier():
        names = [*(name for name in further if name not in shared), *(n for n in shared if n in others or n == text)]
        template = "; ".join(f"{{{name}}}" for name in names)
        why = f"the texts in {', '.join(others)} may tell something too"
        found.append(Setting("data.text", {"template": template}, why, sure=False, suggested=not alike))
    return found


def _frames(identifier: str, tables: CompetitionTables) -> Iterator[Setting]:
    """Vectors beside the texts; or pictures, as a suggestion, because their image encoder is a choice."""
    ids = [each.table[identifier] for each in (tables.train, tables.test)]
    vectors, pictures = frame_files(tables.folder, *ids)
    if vectors:
        yield Setting("data.frames", {"files": vectors}, "vectors of frames, by these ids", sure=False)
    elif pictures:
        frames = {"files": pictures, "encoder": IMAGES}
        why = "pictures by these ids; any image encoder of the hub, or a folder, makes vectors of them"
        yield Setting("data.frames", frames, why, sure=False, suggested=True)


def _is_text(name: str, cells: pd.Series) -> bool:
    """Whether a column's cells, where they are not empty, mostly hold words: no ids, no numbers and no addresses."""
    if not name.isidentifier() or name.lower().endswith("id") or cells.str.contains("://", regex=False).any():
        return False
    full = cells[cells != ""]
    return len(full) > _FULL * len(cells) and np.isfinite(to_floats(full)).mean() < 0.5


def _target(others: Sequence[str], tables: CompetitionTables) -> list[Setting]:
    """The target's columns and kind, and the metric: by the sample's columns, else by what test lacks."""
    train, given = tables.train.table, tables.sample_columns()[1:]
    new = [name for name in others if name not in tables.test.table.columns and name != FOLD_COLUMN]
    if given and {*given} <= {*others}:
        why = f"the columns of {tables.sample.name}, which {tables.train.name} has too"
        return [Setting("data.target_columns", given, why), *_kind(given, tables)]
    for name in new if len(given) > 1 else ():
        if {*train[name]} <= {*given}:
            why = f"its labels are the columns of {tables.sample.name}"
            kind = [Setting("task.kind", "classification", why), Setting("task.classes", given, why)]
            metric = Setting("metric", "log_loss", "a probability for each class is asked for", sure=False)
            return [Setting("data.target_columns", [name], why), *kind, metric]
    if not new:
        raise Fb3Error(
            f"{tables.train.name}: all its columns are in {tables.test.name} too, so none is the target; is it train?"
        )
    numeric = [name for name in new if _numbers(train[name]) is not None]
    chosen = numeric or new[-1:]
    why = f"{tables.test.name} lacks it"
    if given:
        why += f". {tables.sample.name} wants {given}, which {tables.train.name} lacks: rename the column there"
    return [Setting("data.target_columns", chosen, why, sure=False), *_kind(chosen, tables)]


def _numbers(cells: pd.Series) -> np.ndarray | None:
    """The different numbers in a column, sorted; none where a cell holds something else."""
    numbers = np.unique(to_floats(cells))
    return numbers if np.isfinite(numbers).all() else None


def _kind(columns: Sequence[str], tables: CompetitionTables) -> list[Setting]:
    """The kind of task and the metric, by the values in the target's columns."""
    each = [_numbers(tables.train.table[name]) for name in columns]
    if any(values is None for values in each):
        return _of_labels(columns, tables)
    found, fractions = np.unique(np.concatenate(each)), _wants_fractions(columns, tables)
    whole = (found == np.rint(found)).all()
    if {*found} <= {0.0, 1.0}:
        if len(columns) == 1 and not fractions:
            return _of_labels(columns, tables)
        why = f"0 and 1 {'in each column' if columns[1:] else ', and the sample submission holds fractions'}"
        metric = Setting("metric", "mean_column_auc" if columns[1:] else "auc", "probabilities", sure=False)
        return [Setting("task.kind", "multilabel", why.replace(" ,", ",")), metric]
    named = len(columns) == 1 and (_CLASS if len(found) > _WHOLE else _LABEL).search(columns[0])
    if whole and named and not fractions:
        return _of_labels(columns, tables)
    several = "mcrmse" if columns[1:] else "rmse"
    kind = Setting("task.kind", "regression", f"{len(found)} different numbers from {found[0]:g} to {found[-1]:g}")
    if whole and len(found) <= _WHOLE and not fractions:
        why = "few whole numbers, taken for grades; where they are names of classes, set task.kind=classification"
        return [
            kind._replace(why=why, sure=False),
            *_range(found, True),
            Setting("metric", "qwk", "grades", sure=False),
        ]
    bounded = len(found) <= _STEPS or (found[0], found[-1]) == (0.0, 1.0)
    why = "numbers on a scale; read the competition's page for the metric"
    wide = (
        [Setting("task.standardise", True, "learned as scores of mean 0 and deviation 1")]
        if np.std(found) > _WIDE
        else []
    )
    return [kind, *_range(found, bounded), *wide, Setting("metric", several, why, sure=False)]


def _of_labels(columns: Sequence[str], tables: CompetitionTables) -> list[Setting]:
    labels = {*tables.train.table[columns[0]]}
    if len(columns) > 1 or len(labels) > len(tables.train.table) / 2:
        raise Fb3Error(
            f"{tables.train.name}: {list(columns)} hold words, and not the labels of classes; "
            "write a recipe that names the target in data.target_columns"
        )
    shown = ", ".join(map(repr, sorted(labels)[:5])) + (", …" if len(labels) > 5 else "")
    why = "where the share of right labels counts, set accuracy"
    return [
        Setting("task.kind", "classification", f"{len(labels)} labels: {shown}"),
        Setting("metric", "macro_f1", why, sure=False),
    ]


def _wants_fractions(columns: Sequence[str], tables: CompetitionTables) -> bool:
    if tables.sample is None or not {*columns} <= {*tables.sample.table.columns}:
        return False
    numbers = np.concatenate([to_floats(tables.sample.table[name]) for name in columns])
    return bool((numbers != np.rint(numbers)).any())


def _range(found: np.ndarray, bounded: bool) -> list[Setting]:
    low, high = (float(end) if bounded else None for end in (found[0], found[-1]))
    why = "the lowest and the highest in train" if bounded else "an open range: predictions are not clipped"
    return [Setting("task.minimum", low, why, sure=False), Setting("task.maximum", high, why, sure=False)]


def _groups(train: pd.DataFrame, taken: set[str], tables: CompetitionTables) -> list[Setting]:
    """Columns whose equal cells may belong into one fold."""
    found = []
    for name in train.columns:
        count = train[name].nunique()
        if name not in taken and _GROUP.search(name) and 2 <= count <= len(train) / 2 and (train[name] != "").all():
            hidden = name in tables.test.table.columns and not {*tables.test.table[name]} & {*train[name]}
            why = f"{count} different values; keep each in one fold where the hidden rows have others"
            why += ", as those of test have" if hidden else ""
            found.append(Setting("folds.group_column", name, why, sure=False, suggested=True))
    return found
