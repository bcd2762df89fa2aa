"""Scores of a run, from its oof.csv, and the reasons why one is no CV."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fb3.data.tables import FOLD_COLUMN, read_numbers, read_table, whole_numbers
from fb3.errors import Fb3Error, nearest
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.decision import METHODS, method_name
from fb3.recipe.metric import OwnMetricSettings
from fb3.recipe.pseudo import PseudoSettings
from fb3.runs.fold_json import is_finished
from fb3.system.file_names import DECISION, ENSEMBLE, OOF, RECIPE, feature_folder, fold_folder
from fb3.system.files import read_json
from fb3.targets.build import target_of
from fb3.targets.decisions import FITTED, decision_of, honest_decisions
from fb3.targets.metrics import metric_of

TRUTH = "true_"  # prefix of the truths' columns in oof.csv


def caveats(run: Path, recipe: Recipe) -> list[str]:
    """Reasons why the score of a run folder, or of a run in a bundle, is no CV, in words; empty where it is one.

    The recipe tells a --debug run: it is the one file that run folders of every version and bundles share.
    """
    if not (run / "folds.csv").is_file():
        return ["folds.csv is missing, so nothing says how many folds there are"]
    table = read_table(run / "folds.csv", [FOLD_COLUMN])
    known = sorted({*whole_numbers(table[FOLD_COLUMN], run / "folds.csv")} - {-1})
    left = [fold for fold in known if not ((run / ENSEMBLE).is_file() or is_finished(fold_folder(run, fold)))]
    found = []
    if recipe.is_debug():
        found.append(f"a --debug run, {len(table)} essays and {recipe.train.epochs} epochs")
    elif recipe.data.sample == len(table):
        found.append(f"trained on a sample of {len(table)} essays (data.sample)")
    if (run / ENSEMBLE).is_file():
        found += map(str, read_json(run / ENSEMBLE).get("leaks") or [])
    elif leak := told_leak(run, recipe):
        found.append(leak)
    if left:
        found.append(f"folds {left} of {len(known)} are not trained to their end")
    return found


def told_leak(run: Path, recipe: Recipe) -> str:
    """The leak that the recipes of a run and of the runs whose encoders it took tell; empty for none."""
    return next(filter(None, (pseudo.leak() for pseudo in pseudo_settings(run, recipe))), "")


def pseudo_settings(run: Path, recipe: Recipe) -> list[PseudoSettings]:
    """The settings of pseudo-labels from which a run learned, itself or by the runs whose encoders it took."""
    sources = [
        feature_folder(run, n) / RECIPE for n in range(len(recipe.estimator.features) if recipe.estimator else 0)
    ]
    found = [recipe.pseudo, *(load_recipe(file).pseudo for file in sources if file.is_file())]
    return [pseudo for pseudo in found if pseudo]


def named_score(score: float, metric: str | OwnMetricSettings, found: list[str]) -> str:
    """A run's score by its right name: a CV only where `caveats` found nothing."""
    named = f"{metric_of(metric).title} {score:.4f}"
    return f"out-of-fold {named} (no CV: {'; '.join(found)})" if found else f"CV {named}"


class OutOfFold(NamedTuple):
    """The content of a run's oof.csv, N rows: ids and folds (N,), truths and predictions (N, K), not decided."""

    ids: np.ndarray
    folds: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


def read_out_of_fold(run: Path, recipe: Recipe) -> OutOfFold:
    """Reads a run's oof.csv."""
    columns = list(target_of(recipe).columns)
    truths = [TRUTH + column for column in columns]
    table = read_numbers(run / OOF, recipe.data.id_column, truths + columns)
    ids, folds = (table[name].to_numpy() for name in (recipe.data.id_column, FOLD_COLUMN))
    return OutOfFold(ids, folds, table[truths].to_numpy(), table[columns].to_numpy())


def decision_method(run: Path, recipe: Recipe) -> str:
    """The name in `METHODS` of a run's decision: the one of its decision.json, else the recipe's."""
    if (run / DECISION).is_file():
        method = read_json(run / DECISION, {"method": str})["method"]
        if method not in METHODS:
            raise Fb3Error(f"{run / DECISION}: method {method!r}; {nearest(method, METHODS)}; run `fb3 decide {run}`")
        return method
    return method_name(decision_of(recipe))


def scores_of(run: Path, recipe: Recipe) -> dict:
    """The content of scores.json, from oof.csv: the score of all rows, and of each fold.

    A fitted decision is fitted on other folds than the scored one. The folds' own scores are the ones of their
    evaluations, which know no other fold: rounded, or of the likeliest class.
    """
    target, oof = target_of(recipe), read_out_of_fold(run, recipe)

    def score(truth: np.ndarray, predicted: np.ndarray) -> dict:
        each = target.score(truth, predicted)
        return {"score": each.overall, "columns": each.columns, "essays": len(truth)}

    numbers = np.unique(oof.folds).tolist()
    folds = {str(n): score(oof.truth[oof.folds == n], oof.predicted[oof.folds == n]) for n in numbers}
    total = int((read_table(run / "folds.csv", [FOLD_COLUMN])[FOLD_COLUMN] != "-1").sum())
    whole, method = score(oof.truth, oof.predicted), decision_method(run, recipe)
    decided: dict = {}
    if METHODS[method].kind in FITTED:
        values = honest_decisions(METHODS[method], target.metric, oof.truth, oof.predicted, oof.folds, target.columns)
        decided = {"decision": {"method": method, "score_without": whole["score"]}}
        whole = score(oof.truth, values)
    return {**whole, "complete": len(oof.ids) == total, "folds": folds, **decided}


def decision_in_words(scores: dict) -> str:
    """A fitted decision and the score without it, which is nearer to the ones of the folds' evaluations."""
    decided = scores.get("decision")
    return f", decided by {decided['method']} (without it {decided['score_without']:.4f})" if decided else ""


def read_scores(path: Path) -> dict:
    """Reads the scores.json of `scores_of`; an Fb3Error where it is broken or something else."""
    scores = read_json(path, {"score": (float, int), "columns": dict, "essays": int, "complete": bool, "folds": dict})
    found = [scores["score"], *scores["columns"].values()]
    for number, part in scores["folds"].items():
        if not re.fullmatch("[0-9]{1,6}", number) or not isinstance(part, dict):
            raise Fb3Error(f"{path}: folds: {number!r} is no fold's score; copy the run again")
        found.append(part.get("score"))
    if not all(isinstance(each, (float, int)) for each in found):
        raise Fb3Error(f"{path}: holds a score that is no number; copy the run again")
    return scores
