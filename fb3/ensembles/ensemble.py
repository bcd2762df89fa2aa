"""`fb3 ensemble`: weighs members, and writes an ensemble's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fb3.data.tables import FOLD_COLUMN
from fb3.ensembles.blend_forms import FORMS
from fb3.ensembles.comparison import METHODS, Blend, Stack
from fb3.ensembles.ensemble_file import stored_path
from fb3.ensembles.frontier import Frontier, TimeLimit
from fb3.ensembles.members import Members, read_members
from fb3.errors import Fb3Error, nearest
from fb3.prediction.run_flops import fold_flops, trained_run
from fb3.recipe.decision import method_name
from fb3.runs.decide import write_scores
from fb3.runs.scores import TRUTH
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import ENSEMBLE, OOF, RECIPE
from fb3.system.files import atomic_folder, sha256, write_csv, write_json, write_text
from fb3.targets.build import target_of
from fb3.targets.decisions import FITTED, decision_of, honest_decisions
from fb3.targets.target import Probabilities, Target


class Ensemble(NamedTuple):
    """A weighed ensemble.

    path: its folder. stack: the members' predictions. blends: every method that was tried. chosen: the one that the
    folder holds, calibrated where that pays. adds: (M,), see `Stack.adds`. flops: (M,), of one fold and essay, NaN for
    members that are no trained run. frontier: the sets that a time limit chose from.
    """

    path: Path
    members: Members
    stack: Stack
    blends: list[Blend]
    chosen: Blend
    adds: np.ndarray
    flops: np.ndarray
    frontier: Frontier | None = None

    def names(self) -> list[str]:
        """The members' names, see `names_of`."""
        return names_of(self.members.files)

    def prices(self) -> np.ndarray:
        """FLOPs (M,), the mean of the others for members without."""
        known = self.flops[np.isfinite(self.flops)]
        return np.nan_to_num(self.flops, nan=known.mean() if known.size else 1.0)

    def text(self) -> str:
        """The table of methods, the weights, and the members that were dropped."""
        sets = [*self.frontier.text(), ""] if self.frontier else []
        leaks = [f"LEAKS, so no score here is a CV: {leak}" for leak in self.members.leaks]
        return "\n".join([*sets, *self._methods(), "", *self._weights(), *leaks, f"{self.path}: written"])

    def _methods(self) -> list[str]:
        stack, equal = self.stack, self.blends[0]
        singles = [stack.score(member).overall for member in self.members.predicted]
        best = min(range(len(singles)), key=lambda member: stack.sign * singles[member])
        other = "other folds" if self.members.own_folds else "other essays"
        head = f"{stack.metric.title + ', weights fitted on':<56}{'same essays':>12}{other:>14}  better than equal"
        lines = [head, f"  {'best member, ' + self.names()[best]:<54}{singles[best]:>12.5f}"]
        for blend in self.blends:
            gain, error = stack.gain(blend, equal)
            title = blend.title + (" (taken)" if blend is self.chosen else "")
            differs = "" if blend is equal else f"  {gain:+.5f} ± {error:.5f}"
            lines.append(f"  {title:<54}{blend.same:>12.5f}{blend.honest:>14.5f}{differs}")
        return lines

    def _weights(self) -> list[str]:
        weights, columns = self.chosen.weights, self.stack.columns
        shown = columns if not self.chosen.shared else ["weight"]
        width = max(7, *(len(column) + 1 for column in shown))
        lines = [f"{'member':<30}" + "".join(f"{column:>{width}}" for column in shown) + f"{'adds':>10}"]
        order = sorted(range(len(self.adds)), key=lambda member: -weights[:, member].mean())
        for member in (each for each in order if weights[:, each].any()):
            cells = "".join(f"{weight:>{width}.3f}" for weight in weights[: len(shown), member])
            lines.append(f"  {self.names()[member]:<28}{cells}{self.adds[member]:>+10.5f}")
        dropped = [f"{self.names()[each]} ({self.adds[each]:+.5f})" for each in order if not weights[:, each].any()]
        return [*lines, *([f"dropped, with what each would add: {', '.join(dropped)}"] if dropped else [])]


def names_of(files: Sequence[Path]) -> list[str]:
    """A run folder's name, or a file's without its suffix; whole paths where names are alike."""
    names = [file.parent.name if file.name == OOF else file.stem for file in files]
    return [str(file) if names.count(name) > 1 else name for name, file in zip(names, files, strict=True)]


@raises_disk_full("out")
def weigh(
    paths: Sequence[str | Path],
    out: str | Path,
    method: str | None = None,
    data: Path | None = None,
    competition: str | None = None,
    recipe: str | None = None,
    limit: TimeLimit | None = None,
    allow_leaks: bool = False,
    form: str | None = None,
) -> Ensemble:
    """Weighs members on their out-of-fold predictions, and writes the new folder `out`.

    Its ensemble.json holds members and weights; oof.csv the honest blend, each essay's under weights fitted on other
    folds, so that a decision or a second level fitted on it is honest; scores.json its scores, and decision.json the
    decision where the recipe's is a fitted one.

    Args:
        paths, data, recipe, competition, allow_leaks: see `read_members`.
        out: the folder.
        method: a name in `METHODS`; none: see `Stack.choose`.
        limit: the members that fit into a time are chosen first, see `Frontier`; frontier.csv and frontier.png then
            tell the others' scores and seconds.
        form: a name in `FORMS`; none: see `Stack`.

    Raises:
        Fb3Error: see `read_members`; also an unknown method, a form that does not suit the target, `out` is there
            already, or no member fits into the time.
    """
    out = Path(out)
    if method is not None and method not in METHODS:
        raise Fb3Error(f"--method {method}: no such method; {nearest(method, METHODS)}")
    if out.exists():
        raise Fb3Error(f"{out}: is there already; choose another --out")
    members = read_members(paths, data, recipe, competition, allow_leaks)
    _check_form(form, target_of(members.recipe))
    stack, frontier = stack_of(members, form), None
    blends = stack.fit_all()
    chosen = stack.choose(blends, method)
    if limit:
        frontier = Frontier(limit, names_of(members.files), stack, chosen)
        members = members.some(frontier.taken.members)
        stack = stack_of(members, form)
        blends = stack.fit_all()
        chosen = stack.choose(blends, method)
    adds = stack.adds(chosen)
    if _may_be_calibrated(members):
        blends.append(stack.calibrate(chosen))
        gain, error = stack.gain(blends[-1], chosen)
        chosen = blends[-1] if gain > error else chosen
    ensemble = Ensemble(out, members, stack, blends, chosen, adds, _flops(members, data), frontier)
    with atomic_folder(out) as aside:
        _write(ensemble, aside)
    return ensemble


def _check_form(form: str | None, target: Target) -> None:
    if form is None:
        return
    if form not in FORMS:
        raise Fb3Error(f"--blend {form}: no such form; {nearest(form, FORMS)}")
    if form in ("logits", "votes") and not isinstance(target, Probabilities):
        raise Fb3Error(f"--blend {form} is for probabilities, and these members predict numbers; leave it out")
    if form == "ranks" and (target.metric.needs != "ranks" or target.exclusive):
        raise Fb3Error(f"--blend ranks keeps the order within a column alone, and {target.metric.title} reads more")


def stack_of(members: Members, form: str | None = None) -> Stack:
    """The members as the fits read them; blends are scored as a run's predictions: clipped, and decided honestly."""
    target, settings = target_of(members.recipe), decision_of(members.recipe)

    def finish(values: np.ndarray) -> np.ndarray:
        if settings.kind in FITTED and target.metric.needs == "decisions":
            return honest_decisions(settings, target.metric, members.truth, values, members.folds, target.columns)
        return target.clip(values)

    made_of = (members.predicted, members.truth, members.folds, target.metric, target.columns, target.exclusive)
    return Stack(*made_of, finish, form)


def _flops(members: Members, data: Path | None) -> np.ndarray:
    runs = [trained_run(file.parent) if file.name == OOF else None for file in members.files]
    return np.array([fold_flops(run, data) if run else np.nan for run in runs])


def _may_be_calibrated(members: Members) -> bool:
    """Whether slope and shift can matter: for errors of numbers, neither labels nor decisions nor order alone."""
    target = target_of(members.recipe)
    return target.metric.in_units and not isinstance(target, Probabilities)


def _write(ensemble: Ensemble, out: Path) -> None:
    members, columns = ensemble.members, ensemble.stack.columns
    identifier = members.recipe.data.id_column
    write_text(members.recipe.to_yaml(), out / RECIPE)
    folds = pd.DataFrame({identifier: members.ids, FOLD_COLUMN: members.folds})
    write_csv(folds, out / "folds.csv")
    truth = pd.DataFrame(members.truth, columns=columns).add_prefix(TRUTH)
    blended = target_of(members.recipe).clip(ensemble.chosen.values)
    table = pd.concat([folds, truth, pd.DataFrame(blended, columns=columns)], axis=1)
    write_csv(table.sort_values([FOLD_COLUMN, identifier]), out / OOF)
    write_json(_content(ensemble), out / ENSEMBLE)
    if ensemble.frontier:
        ensemble.frontier.write(out)
    write_scores(out, members.recipe)


def _content(ensemble: Ensemble) -> dict[str, Any]:
    """The content of ensemble.json."""
    stack, chosen, equal = ensemble.stack, ensemble.chosen, ensemble.blends[0]
    line, own_folds = chosen.calibration, ensemble.members.own_folds
    order = stack.order(chosen, ensemble.prices())

    def by_column(numbers: np.ndarray) -> dict[str, float]:
        return dict(zip(stack.columns, numbers.tolist(), strict=True))

    def without_fold(member: int) -> dict[str, dict[str, float]]:
        return {str(fold): by_column(weights[:, member]) for fold, weights in chosen.without.items()}

    def scores(blend: Blend) -> dict[str, Any]:
        gain, error = stack.gain(blend, equal)
        return {
            "method": blend.method,
            "weights": "shared" if blend.shared else "by column",
            "calibrated": blend.calibration is not None,
            "same_essays": blend.same,
            "honest": blend.honest,
            "better_than_equal": gain,
            "standard_error": error,
        }

    return {
        "metric": stack.metric.title,
        "blended": stack.form,
        "folds": "of all members" if own_folds else "a split of the essays",
        "essays": len(ensemble.members.ids),
        **{key: scores(chosen)[key] for key in ("method", "weights", "honest")},
        **({} if line is None else {"calibration": {"slope": by_column(line[0]), "shift": by_column(line[1])}}),
        "decision": method_name(decision_of(ensemble.members.recipe)),
        "methods": [scores(blend) for blend in ensemble.blends],
        "leaks": ensemble.members.leaks,
        "members": [
            {
                "path": stored_path(file.parent if file.name == OOF else file, ensemble.path),
                "sha256": sha256(file),
                "weights": by_column(chosen.weights[:, member]),
                **({"weights_without_fold": without_fold(member)} if own_folds else {}),
                "adds": None if np.isnan(ensemble.adds[member]) else float(ensemble.adds[member]),
                **({} if np.isnan(ensemble.flops[member]) else {"flops": ensemble.flops[member]}),
                **({"order": order.index(member)} if member in order else {}),
                **({"test": stored_path(test, ensemble.path), "test_sha256": sha256(test)} if test else {}),
            }
            for member, (file, test) in enumerate(zip(ensemble.members.files, ensemble.members.tests, strict=True))
        ],
    }
