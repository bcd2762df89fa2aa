"""The score of a file of predictions against a file of truths, matched by id."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.data.ids import check_ids, match_ids
from fb3.data.tables import FOLD_COLUMN, parse_numbers, read_table, to_floats
from fb3.errors import Fb3Error, listed, nearest
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.decision import METHODS
from fb3.recipe.metric import OwnMetricSettings
from fb3.runs.scores import TRUTH, caveats, decision_method
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import OOF, RECIPE
from fb3.system.kaggle import COMPETITION_MARKER
from fb3.targets.build import sorted_classes, target_of
from fb3.targets.decisions import FITTED, honest_decisions
from fb3.targets.metrics import METRICS, metric_of

_Metric = str | OwnMetricSettings


class FileScore(NamedTuple):
    """The score of a file of predictions.

    metric: its name in `METRICS`, FILE.py:FUNCTION, or a recipe's settings of it. overall: its value. columns: its
    value for each. left_out: columns of the truth that could have been scored, and were not. caveats: reasons why the
    score of a run's oof.csv is no CV, see `caveats`.
    """

    metric: _Metric
    overall: float
    columns: dict[str, float]
    left_out: list[str]
    caveats: list[str]


class _Pairs(NamedTuple):
    """Truths and predictions, (N, K) each, by their columns; `exclusive` where these are the classes of one label."""

    columns: list[str]
    truth: np.ndarray
    predicted: np.ndarray
    exclusive: bool = False


def score_files(
    predictions: str | Path, truth: str | Path, subset: bool = False, metric: _Metric | None = None
) -> FileScore:
    """The metric of a CSV of predictions against a CSV of truths.

    The id is the first column of `predictions`. The targets are named by the first of these that is there: the recipe
    of the run whose oof.csv `predictions` is, the truths in `predictions` itself, the sample_submission.csv beside
    `truth`; else they are the numeric columns that both files share. A single column of labels is compared as it is. A
    column a class is compared with the one column of the truth whose labels are these classes.

    Args:
        predictions: ids, and one column a target or one a class; other columns are ignored.
        truth: ids, targets, perhaps texts and further columns.
        subset: score the predicted ids only, where the truth has more.
        metric: a name in `METRICS`, FILE.py:FUNCTION, or a recipe's settings of it; None: the metric of the run whose
            oof.csv `predictions` is, else mcrmse for numbers, accuracy for labels, log_loss for a column a class.

    Raises:
        Fb3Error: a missing column, duplicate or empty ids, ids that do not match, a cell that is no number.
    """
    if isinstance(metric, str) and metric not in METRICS and not re.fullmatch(r".+\.py:\w+", metric):
        raise Fb3Error(f"--metric {metric}: no such metric; {nearest(metric, METRICS)}; or give FILE.py:FUNCTION")
    predictions, truth = Path(predictions), Path(truth)
    predicted, true = read_table(predictions, []), read_table(truth, [])
    identifier = predicted.columns[0]
    if identifier not in true.columns:
        has = f"it has {listed(true.columns)}"
        raise Fb3Error(f"{truth}: no column {identifier!r}, which is the first of {predictions}, for the ids; {has}")
    check_ids(predicted[identifier], predictions)
    check_ids(true[identifier], truth)
    more = set(predicted[identifier]) <= set(true[identifier])
    mend = f"; --subset scores without the ids only in {truth}" if more and not subset else ""
    recipe = _recipe_of(predictions, identifier)
    numeric = [c for c in true.columns if c not in {identifier, FOLD_COLUMN} and _is_numeric(true[c])]
    rows = match_ids(true[identifier], predicted[identifier], truth, predictions, mend, subset=subset)
    true = true.iloc[rows]
    if recipe:
        pairs = _by_recipe(recipe, predictions, predicted, truth, true, metric)
    elif not (pairs := _by_class(predictions, predicted, true)):
        shared = _targets(predictions, predicted, truth, true) or [c for c in numeric if c in predicted.columns]
        pairs = _by_labels(predictions, predicted, true, shared, metric)
        pairs = pairs or _by_numbers(predictions, predicted, truth, true, shared)
    usual = ("accuracy" if set(np.unique(pairs.predicted)) <= {0, 1} else "log_loss") if pairs.exclusive else "mcrmse"
    wanted = metric or (recipe.metric if recipe else usual)
    score = metric_of(wanted).score(pairs.truth, pairs.predicted, pairs.columns, pairs.exclusive)
    scored = [*pairs.columns, *(recipe.data.target_columns if recipe else ())]
    left_out = [column for column in numeric if column not in scored]
    found = caveats(predictions.parent, recipe) if recipe else []
    return FileScore(wanted, score.overall, score.columns, left_out, found)


def _recipe_of(predictions: Path, identifier: str) -> Recipe | None:
    """The recipe of the run folder whose oof.csv this is."""
    path = predictions.parent / RECIPE
    recipe = load_recipe(path) if predictions.name == OOF and path.is_file() else None
    return recipe if recipe and recipe.data.id_column == identifier else None


def _by_recipe(
    recipe: Recipe,
    predictions: Path,
    predicted: pd.DataFrame,
    truth: Path,
    true: pd.DataFrame,
    metric: _Metric | None,
) -> _Pairs:
    """The pairs of a run's oof.csv, whose recipe knows the target; decided as in its scores.json.

    Another metric that takes values or probabilities gets them undecided.
    """
    target, identifier = target_of(recipe), recipe.data.id_column
    of_each = ((predictions, predicted, target.columns), (truth, true, target.labels))
    for path, table, named in of_each:
        if missing := [column for column in named if column not in table.columns]:
            source = predictions.parent / RECIPE
            raise Fb3Error(f"{path}: no column {missing}, a target by {source}; it has {listed(table.columns)}")
    essays = true[[identifier, *target.labels]].copy()
    if target.numeric:
        essays[list(target.labels)] = parse_numbers(true, identifier, list(target.labels), truth)
    target.check(essays, truth)
    values = parse_numbers(predicted, identifier, list(target.columns), predictions)
    method = METHODS[decision_method(predictions.parent, recipe)]
    if method.kind in FITTED and (metric is None or metric_of(metric).needs == "decisions"):
        folds = predicted[FOLD_COLUMN].to_numpy()
        values = honest_decisions(method, target.metric, target.truths(essays), values, folds, target.columns)
    return _Pairs(list(target.columns), target.truths(essays), values, target.exclusive)


def _targets(predictions: Path, predicted: pd.DataFrame, truth: Path, true: pd.DataFrame) -> list[str]:
    """The targets that a file names; empty where none does. Refuses a target without predictions or without truths."""
    held = [c.removeprefix(TRUTH) for c in predicted.columns if c.startswith(TRUTH)]
    sample = stored_file(truth.with_name(COMPETITION_MARKER))
    named, source = (held, predictions) if held else (_of_sample(sample, predicted.columns[0], true), sample)
    for path, table in ((predictions, predicted), (truth, true)):
        if missing := [column for column in named if column not in table.columns]:
            raise Fb3Error(f"{path}: no column {missing}, a target by {source}; it has {listed(table.columns)}")
    return named


def _of_sample(path: Path, identifier: str, true: pd.DataFrame) -> list[str]:
    """The columns of a sample submission; none where there is no such file, or a column has no truth."""
    columns = list(read_table(path, []).columns) if path.is_file() else []
    fits = identifier in columns and set(columns) <= set(true.columns)
    return [column for column in columns if fits and column != identifier]


def _by_numbers(
    predictions: Path, predicted: pd.DataFrame, truth: Path, true: pd.DataFrame, columns: list[str]
) -> _Pairs:
    if not columns:
        has = f"it has {listed(true.columns)}, {predictions} has {listed(predicted.columns)}"
        raise Fb3Error(f"{truth}: no column of scores in it that is predicted; {has}")
    of_each = ((true, truth), (predicted, predictions))
    return _Pairs(columns, *(parse_numbers(table, predicted.columns[0], columns, path) for table, path in of_each))


def _by_labels(
    predictions: Path,
    predicted: pd.DataFrame,
    true: pd.DataFrame,
    shared: list[str],
    metric: _Metric | None,
) -> _Pairs | None:
    """One-hot labels, where a single column of labels is predicted; none where it is one of numbers.

    Numbers count as labels where the metric compares labels, such as accuracy; kappa compares numbers.
    """
    columns = shared or [c for c in true.columns if c in predicted.columns[1:] and c != FOLD_COLUMN]
    if len(columns) != 1 or true[columns[0]].is_unique:  # texts, not labels
        return None
    cells, truths = predicted[columns[0]], true[columns[0]]
    wanted = metric_of(metric) if metric else None
    decided = wanted is None or wanted.needs == "decisions"
    if not set(cells) & set(truths):
        return None
    if _is_numeric(truths) and (metric in (None, "qwk") or not decided or not set(cells) <= set(truths)):
        return None
    if not decided:
        raise Fb3Error(
            f"{predictions}: holds labels, and {wanted.title} wants a probability a class, in its own column"
        )
    classes = sorted_classes({*cells, *truths})
    truth, found = ((labels.to_numpy(object)[:, None] == np.array(classes, object)) for labels in (truths, cells))
    return _Pairs(classes, truth.astype(float), found.astype(float), exclusive=True)


def _by_class(predictions: Path, predicted: pd.DataFrame, true: pd.DataFrame) -> _Pairs | None:
    """Probabilities a class against one-hot labels, where some column of the truth holds the predicted classes."""
    identifier, classes = predicted.columns[0], list(predicted.columns[1:])
    if len(classes) < 2 or set(classes) & set(true.columns):
        return None
    fitting = [c for c in true.columns if c != identifier and set(true[c]) <= set(classes)]
    if len(fitting) != 1:
        return None
    truth = true[fitting[0]].to_numpy(object)[:, None] == np.array(classes, object)
    values = parse_numbers(predicted, identifier, classes, predictions)
    return _Pairs(classes, truth.astype(float), values, exclusive=True)


def _is_numeric(cells: pd.Series) -> bool:
    """Numbers for the most part: one bad cell among scores must be named, not hide its column."""
    return np.isnan(to_floats(cells)).mean() < 0.5
