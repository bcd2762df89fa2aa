"""The results of a search: its trials as rows, the best of them, trials.csv, best.yaml and the closing table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fb3.recipe import load_recipe
from fb3.runs.scores import read_scores
from fb3.system.file_names import PREPARE, RECIPE
from fb3.system.files import write_csv, write_text
from fb3.system.progress import as_command, escape_output

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

BASE = "base"  # origin of the trial without a change
FURTHER = "further"  # the study's attribute: seconds and messages of folds beyond the first, by trial
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Row:
    """A trial.

    origin: base, the text of a --try, `again 3` for one that was killed as trial 3, or empty for a draw. state:
    complete, pruned, refused, failed or running. scores: by fold. seconds: of its training, 0 where it had none.
    changes: overrides on top of the base. same_as: an earlier trial of the same recipe, whose score it was given.
    """

    number: int
    origin: str
    state: str
    scores: dict[int, float]
    seconds: float
    parameters: dict[str, Any]
    changes: list[str]
    message: str = ""
    same_as: int | None = None

    def mean(self, folds: Sequence[int]) -> float:
        """The mean of its scores of some folds, all of which it has."""
        return sum(self.scores[fold] for fold in folds) / len(folds)


def folder_of(study: Path, number: int) -> Path:
    """The run folder of a trial."""
    return study / f"trial{number:04d}"


def rows_of(study: "Study", out: Path, first: int) -> list[Row]:
    """All trials that began; `first` is the fold that every one of them trains."""
    further = study.user_attrs.get(FURTHER, {})
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in _STATES]
    return [_row(trial, folder_of(out, trial.number), first, further.get(str(trial.number), {})) for trial in begun]


def _row(trial: "FrozenTrial", folder: Path, first: int, further: dict[str, Any]) -> Row:
    attributes, state = trial.user_attrs, _STATES[trial.state.name]
    message, same = attributes.get("message", ""), attributes.get("same_as")
    if same is not None:
        message = f"the same recipe as trial {same}"
    elif state == "failed" and not message:
        message = "stopped"
    scores = {first: trial.value} if state == "complete" else {}
    if scores and same is None and (folder / "scores.json").is_file():
        scores |= {int(fold): part["score"] for fold, part in read_scores(folder / "scores.json")["folds"].items()}
    return Row(
        number=trial.number,
        origin=attributes.get("origin", ""),
        state="refused" if state == "pruned" and attributes.get("refused") else state,
        scores=scores,
        seconds=round(attributes.get("seconds", 0.0) + further.get("seconds", 0.0), 1),
        parameters=dict(trial.params),
        changes=list(attributes.get("changes", [])),
        message="; ".join(filter(None, [message, further.get("message", "")])),
        same_as=same,
    )


def ranked(rows: Sequence[Row], folds: Sequence[int], lower_is_better: bool = True) -> list[Row]:
    """The trials that have a score of all `folds`, best first; of trials with the same recipe only the first."""
    known = [row for row in rows if row.state == "complete" and row.same_as is None and row.scores.keys() >= set(folds)]
    return sorted(known, key=lambda row: row.mean(folds) if lower_is_better else -row.mean(folds))


def best_of(rows: Sequence[Row], folds: Sequence[int], lower_is_better: bool = True) -> Row | None:
    """The best trial by the mean of all folds; by the first fold until a trial has all of them."""
    return next(iter(ranked(rows, folds, lower_is_better) or ranked(rows, folds[:1], lower_is_better)), None)


def _short(value: Any) -> Any:
    """The value as the recipe holds it: a drawn rate has six digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Outcome:
    """The state of a search. data: its essays' folder. recipe: best.yaml. interrupted: stopped by Ctrl-C."""

    out: Path
    data: Path
    rows: list[Row]
    folds: list[int]
    interrupted: bool = False
    lower_is_better: bool = True

    @property
    def recipe(self) -> Path:
        return self.out / "best.yaml"

    @property
    def base(self) -> Row | None:
        return next((row for row in self.rows if row.origin == BASE and row.state == "complete"), None)

    @property
    def best(self) -> Row | None:
        return best_of(self.rows, self.folds, self.lower_is_better)

    def write(self) -> None:
        """Writes trials.csv, and best.yaml once there is a best trial."""
        if not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row.parameters))
        table = pd.DataFrame(
            [
                {
                    "number": row.number,
                    "origin": row.origin,
                    "state": row.state,
                    **{f"fold{fold}": row.scores.get(fold) for fold in self.folds},
                    "seconds": row.seconds,
                    **{name: _short(row.parameters.get(name)) for name in names},
                    "message": row.message,
                }
                for row in self.rows
            ]
        )
        write_csv(table, self.out / "trials.csv")
        if best := self.best:
            scores = ", ".join(f"fold {fold} {best.scores[fold]:.4f}" for fold in self.folds if fold in best.scores)
            recipe = load_recipe(folder_of(self.out, best.number) / RECIPE).with_prepare(PREPARE)
            write_text(f"# Trial {best.number}: {scores}.\n{recipe.to_yaml()}", self.recipe)

    def show(self) -> None:
        """Prints base, best and their difference on the folds that both have; then the best trial's changes to the base
        recipe, and the command that trains it."""
        from rich.console import Console
        from rich.table import Table

        escape_output()
        console, base, best = Console(), self.base, self.best
        if base is None or best is None:
            console.print("no trial has a score yet", highlight=False)
            return
        shared = [fold for fold in self.folds if fold in base.scores and fold in best.scores]
        table = Table(caption=", ".join(f"{n} {state}" for state, n in Counter(r.state for r in self.rows).items()))
        for heading in ("", "trial", *(f"fold {fold}" for fold in shared), *(["mean"] if len(shared) > 1 else [])):
            table.add_column(heading, justify="right" if heading else "left")

        def add(name: str, number: str, scores: list[float], form: str) -> None:
            scores = [*scores, sum(scores) / len(scores)] if len(shared) > 1 else scores
            table.add_row(name, number, *(form.format(score) for score in scores))

        ours, theirs = [best.scores[fold] for fold in shared], [base.scores[fold] for fold in shared]
        add(BASE, str(base.number), theirs, "{:.4f}")
        add("best", str(best.number), ours, "{:.4f}")
        add("difference", "", [a - b for a, b in zip(ours, theirs, strict=True)], "{:+.4f}")
        console.print(table)
        print(f"best: {as_command(best.changes) or 'the base recipe'}")
        print(as_command(["fb3", "train", self.recipe, "--data", self.data, "--out", self._free_folder()]))

    def _free_folder(self) -> Path:
        """A folder that does not exist yet, for the run of the best recipe."""
        names = (f"{self.out.name}-best{number}" for number in chain([""], (f"-{n}" for n in count(2))))
        return next(place for name in names if not (place := self.out.with_name(name)).exists())
