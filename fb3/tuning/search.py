"""A search for a better recipe: trials on one fold, the best of them on further folds (optuna; Akiba et al. 2019,
arXiv:1907.10902).

Everything a search knows is on disk, in the study and in its trials' run folders: it may be killed at any time, and the
same command goes on.
"""

import gc
import hashlib
import math
import os
import re
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fb3.errors import DiskFull, Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.load import overridden
from fb3.runs.run_folder import copy_prepare
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import ENCODER, LOCK, PREPARE, RECIPE, RESUME, fold_folders
from fb3.system.files import write_text
from fb3.system.folder_lock import lock_folder
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.training.run import fold_numbers, train
from fb3.tuning.space import Space, read_space, refuse_fixed
from fb3.tuning.study import DATABASE, SHARES, check_study, load_optuna, open_study, suggest
from fb3.tuning.trials import BASE, FURTHER, Outcome, Row, folder_of, ranked, rows_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from fb3.training.session import Evaluation, OnEvaluation

_ERRORS = 5  # trials in a row that fail in training: then their parameters are not the reason, and the search ends
_KILLS = 2  # times that a trial may end the whole process before it is given up


@raises_disk_full("out")
def tune(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    trials: int,
    minutes: float | None = None,
    folds: Sequence[int] = (0,),
    finalists: int = 3,
    space: str | Path = "default",
    tries: Sequence[str] = (),
) -> Outcome:
    """Searches for a better recipe; goes on if `out` holds a search already.

    Args:
        recipe: the base; the first trial is the base itself.
        data: the folder with train.csv.
        out: the study's folder.
        trials: how many in all, earlier starts included; one that was killed is made again and counts once.
        minutes: time for this start, finalists included; work that would end later is not begun. None: no limit.
        folds: the first is trained by each trial, the others by the finalists and the base.
        finalists: how many of the best on the first fold.
        space: a YAML file or the name of a built-in space.
        tries: further trials to begin with, each `key=value key=value` on top of the base.

    Raises:
        Fb3Error: recipe, space, data or folder are wrong; or the base recipe does not train.
    """
    start = time.monotonic()
    load_optuna()  # before anything takes time
    data, out, folds = Path(data), Path(out), list(folds)
    if trials < 1 or finalists < 1 or (minutes is not None and not minutes > 0):
        raise Fb3Error("fb3 tune: trials, finalists and minutes must be above 0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Fb3Error("fb3 tune: runs in one process; start it without a launcher")
    if recipe.train.trackers:
        raise Fb3Error("train.trackers: a search makes many runs and cuts some off; set train.trackers=[]")
    known = fold_numbers(recipe, data)
    if not folds or len(set(folds)) < len(folds) or set(folds) - set(known):
        raise Fb3Error(f"--folds {','.join(map(str, folds))}: want different ones of {known}")
    drawn_from = read_space(space).fitting(recipe)
    drawn_from.check(recipe)
    starts = {BASE: []} | {text: _overrides_of(text, recipe) for text in tries}
    there = {path.name for path in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    if there - {LOCK} and DATABASE not in there:
        raise Fb3Error(f"{out}: not empty and no search; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    limit = None if minutes is None else start + 60 * minutes
    with lock_folder(out, "fb3 tune"):
        study = open_study(out, drawn_from, recipe.train.seed, target_of(recipe).metric.lower_is_better)
        check_study(study, recipe, drawn_from, data, folds, out)
        copy_prepare(recipe, out)
        write_text(recipe.with_prepare(PREPARE).to_yaml(), out / "base.yaml")
        recipe = recipe.with_prepare(str(out.absolute() / PREPARE))
        write_text(drawn_from.text, out / "space.yaml")
        search = _Search(study, recipe, data, out, folds, drawn_from, starts, limit)
        try:
            search.run(trials, finalists)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on")
            return search.settle(interrupted=True)
        return search.outcome()


@dataclass
class _Search:
    """A running search.

    starts: overrides of the trials to begin with, by origin. limit: its end by time.monotonic(); none: no limit.
    """

    study: "Study"
    recipe: Recipe
    data: Path
    out: Path
    folds: list[int]
    space: Space
    starts: dict[str, list[str]]
    limit: float | None

    def run(self, trials: int, finalists: int) -> None:
        """Makes trials until there are enough, or time is up; then trains the finalists' further folds."""
        self.settle()
        start, errors = time.monotonic(), 0
        while sum(row.state in {"complete", "pruned", "refused"} for row in self.rows()) < trials:
            if not self.has_time(self.expected(finalists, start)):
                say("no time is left for another trial; give more --minutes")
                break
            self.enqueue()
            trial = self.study.ask()
            broke = self.make(trial)
            self.outcome().write()
            errors = errors + 1 if broke else 0
            if errors == _ERRORS:
                raise Fb3Error(f"{errors} trials in a row broke; the last: {broke}")
        self.train_finalists(finalists)

    def rows(self) -> list[Row]:
        return rows_of(self.study, self.out, self.folds[0])

    def ranked(self) -> list[Row]:
        """The trials with a score of the first fold, best first."""
        return ranked(self.rows(), self.folds[:1], target_of(self.recipe).metric.lower_is_better)

    def outcome(self, interrupted: bool = False) -> Outcome:
        lower_is_better = target_of(self.recipe).metric.lower_is_better
        return Outcome(self.out, self.data, self.rows(), self.folds, interrupted, lower_is_better)

    def settle(self, interrupted: bool = False) -> Outcome:
        """Marks trials that an earlier process left running as failed, deletes weights, and writes the results."""
        for row in self.rows():
            if row.state == "running":
                self.study.tell(row.number, state=load_optuna().trial.TrialState.FAIL)
            _clean(folder_of(self.out, row.number))
        outcome = self.outcome(interrupted)
        outcome.write()
        return outcome

    def enqueue(self) -> None:
        """Queues trials that come before any draw: the base, then the other starts and killed trials once more."""
        trials = self.study.get_trials(deepcopy=False)
        there = {_origin(trial) for trial in trials if trial.state.name != "FAIL"}
        if BASE not in there:
            self._enqueue_start(BASE)
        if not self._base_done():
            return
        failed = [trial for trial in trials if trial.state.name == "FAIL"]
        kills = [_origin(trial) for trial in failed]
        for origin in self.starts:
            if origin not in there and kills.count(origin) < _KILLS:
                self._enqueue_start(origin)
        for trial in failed:
            again = _origin(trial) or f"again {trial.number}"
            if again not in {*there, *self.starts} and kills.count(again) + 1 < _KILLS:
                self.study.enqueue_trial(trial.params, user_attrs={"origin": again})

    def _enqueue_start(self, origin: str) -> None:
        overrides = self.starts[origin]
        located = self.space.locate(self.recipe, overridden(self.recipe, overrides)) or {}
        attributes = {"origin": origin, "overrides": overrides, "inside": bool(located)}
        self.study.enqueue_trial(located, user_attrs=attributes)

    def _base_done(self) -> bool:
        return any(row.origin == BASE and row.state == "complete" for row in self.rows())

    def make(self, trial: "Trial") -> str:
        """Trains a trial's first fold and writes the outcome into the study; gives why it failed, empty if it did not.

        Raises:
            Fb3Error: it failed, and the trial is the base.
        """
        optuna, attributes = load_optuna(), trial.user_attrs
        # A start outside the space gets no parameters, or the sampler would learn from values that it cannot draw.
        inside = self.space.entries if attributes.get("inside", True) else {}
        parameters = {name: suggest(trial, name, entry) for name, entry in inside.items()}
        overrides = attributes["overrides"] if "overrides" in attributes else self.space.overrides(parameters)
        trial.set_user_attr("changes", overrides)
        say(f"trial {trial.number}: {' '.join(overrides) or 'the base recipe'}")
        try:
            recipe = overridden(self.recipe, overrides)
        except Fb3Error as error:  # the starts were checked, so this is a draw
            self._refuse(trial, str(error))
            return ""
        digest = hashlib.sha256(recipe.to_yaml().encode()).hexdigest()
        if same := self._twin(digest):
            self._repeat(trial, same)
            return ""
        trial.set_user_attr("recipe", digest)
        start, watch = time.monotonic(), partial(self._watch, trial)
        score, broke = self._trained(recipe, trial.number, self.folds[0], watch)
        trial.set_user_attr("seconds", time.monotonic() - start)
        if broke and attributes.get("origin") == BASE:
            trial.set_user_attr("message", broke)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise Fb3Error(f"the base recipe does not train: {broke}")
        if broke:
            self._refuse(trial, broke)
        elif score is None:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            say(f"trial {trial.number}: cut off, it lay behind the median")
        else:
            self.study.tell(trial, score)
            best = self.study.best_trial
            say(f"trial {trial.number}: {score:.4f}; best so far {best.value:.4f}, trial {best.number}")
        return broke

    def _trained(self, recipe: Recipe, number: int, fold: int, watch: "OnEvaluation") -> tuple[float | None, str]:
        """Trains a trial's fold; gives its score, none if it was cut off, and why it failed, empty if it did not."""
        import torch

        folder, score, broke = folder_of(self.out, number), None, ""
        try:
            score = train(recipe, self.data, folder, folds=[fold], on_evaluation=watch).score.overall
        except load_optuna().TrialPruned:
            pass
        except DiskFull:  # not the recipe's fault: the trial is made again once there is room
            raise
        except Fb3Error as error:
            broke = str(error)
        except torch.OutOfMemoryError:
            broke = "out of memory; smaller train.batch_size, or model.gradient_checkpointing"
        _clean(folder)
        if score is None:
            _free_memory()
        return score, broke

    def _refuse(self, trial: "Trial", message: str) -> None:
        """Marks a trial as refused. For optuna it is pruned, not failed, so that the sampler avoids its parameters."""
        trial.set_user_attr("message", message)
        trial.set_user_attr("refused", True)
        self.study.tell(trial, state=load_optuna().trial.TrialState.PRUNED)
        say(f"trial {trial.number}: refused: {message}")

    def _twin(self, digest: str) -> "FrozenTrial | None":
        """An earlier trial of the same recipe: training it again would give the same score."""
        trials = self.study.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.name in {"COMPLETE", "PRUNED"}]
        return next((trial for trial in ended if trial.user_attrs.get("recipe") == digest), None)

    def _repeat(self, trial: "Trial", same: "FrozenTrial") -> None:
        """Gives a trial the outcome of its twin."""
        trial.set_user_attr("same_as", same.number)
        for step, value in same.intermediate_values.items():
            trial.report(value, step)
        self.study.tell(trial, same.value if same.state.name == "COMPLETE" else None, state=same.state)
        say(f"trial {trial.number}: the same recipe as trial {same.number}")

    def _watch(self, trial: "Trial", evaluation: "Evaluation") -> None:
        """Reports an evaluation, and cuts off a trial that lies behind; never the base, with which all are compared."""
        step = round(SHARES * evaluation.share)
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step in reported or not math.isfinite(evaluation.score.overall):  # a soup is evaluated several times
            return
        trial.report(evaluation.score.overall, step)
        if trial.user_attrs.get("origin") != BASE and trial.should_prune():
            raise load_optuna().TrialPruned

    def expected(self, finalists: int, start: float) -> float:
        """Seconds for another trial, and seconds to keep for the finalists, which are at most half of all time."""
        known = self.ranked()
        if not known or self.limit is None:
            return 0.0
        one = statistics.mean(row.seconds / len(row.scores) for row in known)
        return one + min((finalists + 1) * (len(self.folds) - 1) * one, (self.limit - start) / 2)

    def has_time(self, seconds: float) -> bool:
        """Whether work of so many seconds may begin; the base trial always may."""
        return self.limit is None or not self._base_done() or time.monotonic() + seconds < self.limit

    def train_finalists(self, finalists: int) -> None:
        """Trains the other folds of the best trials and of the base, the very best first."""
        rows = self.ranked()
        base = [row for row in rows[finalists:] if row.origin == BASE]
        for row in [*rows[:1], *base, *rows[1:finalists]]:
            for fold in self.folds[1:]:
                if fold in row.scores or row.message:
                    continue
                if not self.has_time(row.seconds / len(row.scores)):
                    say(f"no time is left for fold {fold} of trial {row.number}; give more --minutes")
                    return
                self._train_further(row, fold)

    def _train_further(self, row: Row, fold: int) -> None:
        say(f"trial {row.number}: fold {fold}")
        recipe, start = load_recipe(folder_of(self.out, row.number) / RECIPE), time.monotonic()
        _, broke = self._trained(recipe, row.number, fold, lambda evaluation: None)
        message = f"fold {fold}: {broke}" if broke else ""
        further = dict(self.study.user_attrs.get(FURTHER, {}))
        seconds = further.get(str(row.number), {}).get("seconds", 0.0) + time.monotonic() - start
        further[str(row.number)] = {"seconds": seconds, "message": message}
        self.study.set_user_attr(FURTHER, further)
        self.outcome().write()


def _overrides_of(text: str, recipe: Recipe) -> list[str]:
    """The overrides of a --try, whose values may hold spaces; refuses what the recipe refuses."""
    overrides = re.split(r"\s+(?=[\w.]+=)", text.strip())
    overridden(recipe, overrides)
    refuse_fixed([override.partition("=")[0] for override in overrides], f"--try {text!r}")
    return overrides


def _origin(trial: "FrozenTrial") -> str:
    return trial.user_attrs.get("origin", "")


def _clean(folder: Path) -> None:
    """Deletes the files that a trial's run no longer needs: weights, saves and tokenizer."""
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    for part in (folder / ENCODER, folder / "scratch", *(fold / RESUME for fold in fold_folders(folder))):
        shutil.rmtree(part, ignore_errors=True)


def _free_memory() -> None:
    """Frees the memory of a model whose training was cut off."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
