"""A run's decision.json: the decision fitted on its oof.csv, bound to it by a hash."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error, nearest
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.decision import METHODS, method_name, methods_for
from fb3.runs.scores import decision_method, read_out_of_fold, scores_of
from fb3.system.file_names import DECISION, OOF, RECIPE
from fb3.system.files import read_json, sha256, write_json
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.targets.decisions import FITTED, Decision, compare_decisions, decision_of, fit_decision
from fb3.targets.metrics import metric_of


class FittedDecision(NamedTuple):
    """A decision of a run.

    method: its name for `--method`. metric: the metric's title. scores: of each decision that was tried, the score on
    the essays that it was fitted on, and on others. folds: how many folds there are; a single one is scored by halves.
    """

    path: Path
    method: str
    metric: str
    scores: dict[str, tuple[float, float]]
    folds: int

    def text(self) -> str:
        """The table of scores."""
        other = "other folds" if self.folds > 1 else "other half"
        lines = [f"{self.metric + ', fitted on':<26}{'same essays':>12}{other:>14}"]
        for name, (same, honest) in self.scores.items():
            lines.append(f"  {name + (' (taken)' if name == self.method else ''):<24}{same:>12.4f}{honest:>14.4f}")
        return "\n".join([*lines, f"{self.path}: written"])


def decide_run(run: Path, method: str | None = None) -> FittedDecision:
    """Fits a decision on a run's oof.csv, writes decision.json, and scores it beside others of its kind of task.

    Args:
        run: the run folder.
        method: a name in `METHODS`; none: the recipe's decision, or the one that its metric and task ask for.

    Raises:
        Fb3Error: no such method, one that does not suit the task, or a broken run folder.
    """
    recipe = load_recipe(run / RECIPE)
    metric, fitting = metric_of(recipe.metric), methods_for(recipe.task.kind)
    if method is not None and method not in ("none", *fitting):
        hint = nearest(method, ("none", *fitting))
        raise Fb3Error(f"--method {method}: no decision for task.kind={recipe.task.kind}; {hint}")
    name = method or method_name(decision_of(recipe))
    target, oof = target_of(recipe), read_out_of_fold(run, recipe)
    tried = dict.fromkeys([*(fitting if metric.needs == "decisions" else []), name])
    scores = compare_decisions(
        {each: METHODS[each] for each in tried},
        metric,
        oof.truth,
        oof.predicted,
        oof.folds,
        target.columns,
        target.exclusive,
    )
    _write_decision(run, recipe, name)
    write_json(scores_of(run, recipe), run / "scores.json")
    return FittedDecision(run / DECISION, name, metric.title, scores, len(np.unique(oof.folds)))


def write_scores(run: Path, recipe: Recipe) -> None:
    """Writes scores.json anew from oof.csv, and decision.json where the decision is a fitted one."""
    name = decision_method(run, recipe)
    if METHODS[name].kind in FITTED:
        _write_decision(run, recipe, name)
    write_json(scores_of(run, recipe), run / "scores.json")


def _write_decision(run: Path, recipe: Recipe, name: str) -> None:
    target, oof = target_of(recipe), read_out_of_fold(run, recipe)
    decision = fit_decision(METHODS[name], target.metric, oof.truth, oof.predicted, target.columns)
    content = {"fitted_on": sha256(run / OOF), "metric": target.metric.title, "method": name}
    write_json({**content, "columns": list(target.columns), **decision.to_json()}, run / DECISION)


def ensemble_decision(runs: Mapping[Path, Recipe]) -> dict[str, Any] | None:
    """The content of a bundle's decision.json: fitted on the mean of its runs' out-of-fold predictions.

    Args:
        runs: folders and recipes, of one target; the first one's method is taken. Essays that not all runs predicted
            are left out.

    Returns:
        None where the recipe alone tells the decision: it is no fitted one, and `fb3 decide` took no other.

    Raises:
        Fb3Error: the runs have no essay in common, or a decision.json is broken.
    """
    (first, recipe), *_ = runs.items()
    methods = [decision_method(run, of_run) for run, of_run in runs.items()]
    method = methods[0]
    if len(set(methods)) > 1:
        say(f"WARNING: the runs have the decisions {', '.join(methods)}; {method} of {first} is taken for all")
    if METHODS[method].kind not in FITTED and method == method_name(decision_of(recipe)):
        return None
    parts = [read_out_of_fold(run, of_run) for run, of_run in runs.items()]
    tables = [pd.DataFrame(part.predicted, index=part.ids) for part in parts]
    common = tables[0].index[np.all([tables[0].index.isin(table.index) for table in tables], axis=0)]
    if common.empty:
        raise Fb3Error(f"{', '.join(map(str, runs))}: no essay has predictions of all; train the same folds of each")
    truth = pd.DataFrame(parts[0].truth, index=parts[0].ids).loc[common].to_numpy()
    mean, target = np.mean([table.loc[common].to_numpy() for table in tables], axis=0), target_of(recipe)
    decision = fit_decision(METHODS[method], target.metric, truth, mean, target.columns)
    hashes = [sha256(run / OOF) for run in runs]
    return {"fitted_on": hashes, "method": method, "columns": list(target.columns), **decision.to_json()}


def read_decision(run: Path) -> Decision | None:
    """The decision of a run, or of a run in a bundle; none where there is no decision.json.

    Raises:
        Fb3Error: it is broken, or was fitted on another oof.csv.
    """
    path = run / DECISION
    if not path.is_file():
        return None
    content = read_json(path, {"fitted_on": str, "kind": str})
    if content["fitted_on"] != sha256(run / OOF):
        raise Fb3Error(f"{path}: was fitted on another {OOF} than the one beside it; run `fb3 decide {run}`")
    return Decision.from_json(content, path)
