"""A run's decision.json: the decision fitted on its oof.csv, bound to it by a hash."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fb3.data.tables import FOLD_COLUMN, read_numbers, read_table
from fb3.errors import Fb3Error, nearest
from fb3.recipe import load_recipe
from fb3.recipe.decision import METHODS, methods_for
from fb3.runs.scores import TRUTH
from fb3.system.file_names import DECISION, OOF, RECIPE
from fb3.system.files import read_json, sha256, write_json
from fb3.targets.decisions import Decision, compare_decisions, decision_of, fit_decision
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
    settings = METHODS[method] if method else decision_of(recipe)
    name = next(name for name, each in METHODS.items() if each == settings)
    header = read_table(run / OOF, [FOLD_COLUMN]).columns
    columns = [column.removeprefix(TRUTH) for column in header if column.startswith(TRUTH)]
    table = read_numbers(run / OOF, recipe.data.id_column, [TRUTH + column for column in columns] + columns)
    truth, predicted = table[[TRUTH + column for column in columns]].to_numpy(), table[columns].to_numpy()
    tried = dict.fromkeys([*(fitting if metric.needs == "decisions" else []), name])
    folds, exclusive = table[FOLD_COLUMN].to_numpy(), recipe.task.kind == "classification"
    scores = compare_decisions(
        {each: METHODS[each] for each in tried}, metric, truth, predicted, folds, columns, exclusive
    )
    decision = fit_decision(settings, metric, truth, predicted, columns)
    content = {"fitted_on": sha256(run / OOF), "metric": str(recipe.metric), "method": name, "columns": columns}
    same, other = scores[name]
    write_json({**content, "score": {"same": same, "other": other}, **decision.to_json()}, run / DECISION)
    return FittedDecision(run / DECISION, name, metric.title, scores, len(np.unique(folds)))


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
