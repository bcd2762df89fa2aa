"""`fb3 ensemble`: weighs members, and writes an ensemble's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fb3.data.tables import FOLD_COLUMN
from fb3.ensembles.comparison import METHODS, Blend, Stack
from fb3.ensembles.members import Members, read_members
from fb3.errors import Fb3Error, nearest
from fb3.recipe.decision import method_name
from fb3.runs.decide import write_scores
from fb3.runs.scores import TRUTH
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import ENSEMBLE, OOF, RECIPE
from fb3.system.files import atomic_folder, sha256, write_csv, write_json, write_text
from fb3.targets.build import target_of
from fb3.targets.decisions import FITTED, decision_of, honest_decisions


class Ensemble(NamedTuple):
    """A weighed ensemble.

    path: its folder. stack: the members' predictions. blends: every method that was tried. chosen: the one that the
    folder holds. adds: (M,), see `Stack.adds`.
    """

    path: Path
    members: Members
    stack: Stack
    blends: list[Blend]
    chosen: Blend
    adds: np.ndarray

    def names(self) -> list[str]:
        """The members' names: a run folder's, or a file's without its suffix; whole paths where names are alike."""
        files = self.members.files
        names = [file.parent.name if file.name == OOF else file.stem for file in files]
        return [str(file) if names.count(name) > 1 else name for name, file in zip(names, files, strict=True)]

    def text(self) -> str:
        """The table of methods, the weights, and the members that were dropped."""
        leaks = [f"LEAKS, so no score here is a CV: {leak}" for leak in self.members.leaks]
        return "\n".join([*self._methods(), "", *self._weights(), *leaks, f"{self.path}: written"])

    def _methods(self) -> list[str]:
        stack, equal = self.stack, self.blends[0]
        singles = [stack.score(member).overall for member in self.members.predicted]
        best = min(range(len(singles)), key=lambda member: stack.sign * singles[member])
        other = "other folds" if self.members.own_folds else "other essays"
        head = f"{stack.metric.title + ', weights fitted on':<44}{'same essays':>12}{other:>14}  better than equal"
        lines = [head, f"  {'best member, ' + self.names()[best]:<42}{singles[best]:>12.5f}"]
        for blend in self.blends:
            gain, error = stack.gain(blend, equal)
            title = blend.title + (" (taken)" if blend is self.chosen else "")
            differs = "" if blend is equal else f"  {gain:+.5f} ± {error:.5f}"
            lines.append(f"  {title:<42}{blend.same:>12.5f}{blend.honest:>14.5f}{differs}")
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


@raises_disk_full("out")
def weigh(
    paths: Sequence[str | Path],
    out: str | Path,
    method: str | None = None,
    data: Path | None = None,
    competition: str | None = None,
    recipe: str | None = None,
    allow_leaks: bool = False,
) -> Ensemble:
    """Weighs members on their out-of-fold predictions, and writes the new folder `out`.

    Its ensemble.json holds members and weights; oof.csv the honest blend, each essay's under weights fitted on other
    folds, so that a decision or a second level fitted on it is honest; scores.json its scores, and decision.json the
    decision where the recipe's is a fitted one.

    Args:
        paths, data, recipe, competition, allow_leaks: see `read_members`.
        out: the folder.
        method: a name in `METHODS`; none: see `Stack.choose`.

    Raises:
        Fb3Error: see `read_members`; also an unknown method, or `out` is there already.
    """
    out = Path(out)
    if method is not None and method not in METHODS:
        raise Fb3Error(f"--method {method}: no such method; {nearest(method, METHODS)}")
    if out.exists():
        raise Fb3Error(f"{out}: is there already; choose another --out")
    members = read_members(paths, data, recipe, competition, allow_leaks)
    stack = stack_of(members)
    blends = stack.fit_all()
    chosen = stack.choose(blends, method)
    ensemble = Ensemble(out, members, stack, blends, chosen, stack.adds(chosen))
    with atomic_folder(out) as aside:
        _write(ensemble, aside)
    return ensemble


def stack_of(members: Members) -> Stack:
    """The members as the fits read them; blends are scored as a run's predictions: clipped, and decided honestly."""
    target, settings = target_of(members.recipe), decision_of(members.recipe)

    def finish(values: np.ndarray) -> np.ndarray:
        if settings.kind in FITTED and target.metric.needs == "decisions":
            return honest_decisions(settings, target.metric, members.truth, values, members.folds, target.columns)
        return target.clip(values)

    return Stack(
        members.predicted, members.truth, members.folds, target.metric, target.columns, target.exclusive, finish
    )


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
    write_scores(out, members.recipe)


def _content(ensemble: Ensemble) -> dict[str, Any]:
    """The content of ensemble.json."""
    stack, chosen, equal = ensemble.stack, ensemble.chosen, ensemble.blends[0]

    def scores(blend: Blend) -> dict[str, Any]:
        gain, error = stack.gain(blend, equal)
        return {
            "method": blend.method,
            "weights": "shared" if blend.shared else "by column",
            "same_essays": blend.same,
            "honest": blend.honest,
            "better_than_equal": gain,
            "standard_error": error,
        }

    return {
        "metric": stack.metric.title,
        "blended": "values" if stack.reference is None else "ranks",
        "folds": "of all members" if ensemble.members.own_folds else "a split of the essays",
        "essays": len(ensemble.members.ids),
        **{key: scores(chosen)[key] for key in ("method", "weights", "honest")},
        "decision": method_name(decision_of(ensemble.members.recipe)),
        "methods": [scores(blend) for blend in ensemble.blends],
        "leaks": ensemble.members.leaks,
        "members": [
            {
                "path": str(file.parent if file.name == OOF else file),
                "sha256": sha256(file),
                "weights": dict(zip(stack.columns, chosen.weights[:, member].tolist(), strict=True)),
                "adds": None if np.isnan(ensemble.adds[member]) else float(ensemble.adds[member]),
            }
            for member, file in enumerate(ensemble.members.files)
        ],
    }
