"""Inference: a bundle and a test file to a submission that is valid at every moment. Needs nothing but the image.

The first file, of training means, is written before torch is imported; each fold then replaces it.
"""

import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fb3.bundle import Bundle, Member, read_bundle
from fb3.cost import forward_flops
from fb3.ensemble import Predictions, average
from fb3.errors import Fb3Error
from fb3.essays import Encoded, check_ids, read_essays, read_table
from fb3.files import read_json, sha256
from fb3.layout import ENCODER, FOLD_JSON, RECIPE
from fb3.progress import say
from fb3.recipe import Recipe, load_recipe
from fb3.runtime import (
    COMPETITION_MARKER,
    find_competition,
    hidden_rerun,
    on_kaggle,
    parse_duration,
    pick_devices,
    seconds_running,
)
from fb3.submission import Standing, check_form
from fb3.summary import Summary

if TYPE_CHECKING:
    from fb3.worker import Workers

_MARGIN = 0.05  # share of the limit that is kept for what comes after
_UNSURE = 1.5  # a run that was not measured yet is taken to need so many times what another's speed promises


def infer(
    bundle: str | Path,
    data: str | Path | None = None,
    out: str | Path = "submission.csv",
    *,
    test: str | Path | None = None,
    deadline: str | float | None = None,
    strict: bool = False,
) -> pd.DataFrame:
    """Predicts with every fold of every run in a bundle and writes the submission.

    Folds are averaged within a run, runs among each other with equal weights, by id; then clipped to the score range.
    The file stands, with the training means, before the first fold is loaded, and is replaced whole after each. A fold
    that is damaged, fails, or no longer fits into the time is left out, the others weigh more, and that is said. What
    happened stands in `out` with the suffix .report.json too.

    Args:
        bundle: the folder that `write_bundle` made.
        data: the folder with test.csv and sample_submission.csv; none: found among the mounted inputs.
        out: the CSV to write.
        test: predict this file instead of data/test.csv. Where none of its ids is in the sample submission, the rows
            keep this file's order.
        deadline: seconds from now, or a text such as 8h30m; none: the recipe's predict.limit_hours less 5 %, on Kaggle
            counted from the start of the session.
        strict: a fold that cannot be used is an error.

    Returns:
        What was written: the id column, then one column a target.

    Raises:
        Fb3Error: no fold could be used, or bad essays, or ids that do not match. Except in Kaggle's run on the hidden
            rows: an error would cost the submission, so there the file stays as it stands, and the error is printed.
    """
    start, out = time.monotonic(), Path(out)
    if out.is_dir():
        raise Fb3Error(f"{out}: is a folder; give a file with --out")
    packed = read_bundle(bundle)
    summary = Summary(out.with_suffix(".report.json"), start)
    members = _whole_members(packed, summary, strict)
    recipe = members[0].recipe
    data = find_competition() if data is None and test is None else data
    ends = start + _seconds(deadline, members)
    standing = None
    try:
        if test is None:
            sample = _read_sample(Path(data), recipe)
            standing = _stand(sample, packed, members, out, summary)
        source = Path(test) if test is not None else Path(data) / "test.csv"
        essays = read_essays(source, recipe.data)
        if test is not None:
            sample = _sample_for(essays, data, recipe, source)
            standing = _stand(sample, packed, members, out, summary)
        check_form(essays[recipe.data.id_column], sample, list(recipe.data.target_columns), str(source))
        _predict_all(packed, members, essays, standing, summary, ends, strict)
    except Exception as error:
        if strict or standing is None or not hidden_rerun():
            raise
        say(traceback.format_exc())
        summary.error = str(error)
        say(f"ERROR, but this is the run on the hidden rows: {out} stays as it stands ({error})")
    summary.finish(out, len(standing.table))
    return standing.table.reset_index()


def _seconds(deadline: str | float | None, members: list[Member]) -> float:
    if deadline is not None:
        return parse_duration(str(deadline))
    limit = min(member.recipe.predict.limit_hours for member in members) * 3600 * (1 - _MARGIN)
    return limit - (seconds_running() if on_kaggle() else 0.0)


def _whole_members(packed: Bundle, summary: Summary, strict: bool) -> list[Member]:
    """The runs whose recipe and encoder folder are as they were packed.

    Raises:
        Fb3Error: none is, or with `strict` one is not.
    """
    members = []
    for name, path, folds in packed.runs():
        of_folds = {file for fold in folds for file in packed.files_below(fold)}
        try:
            for file in packed.files_below(path):
                if file not in of_folds:
                    packed.check(file)
            members.append(Member(name, path, load_recipe(path / RECIPE), folds))
        except Fb3Error as error:
            if strict:
                raise
            for fold in folds:
                summary.left_out(f"{name}/{fold.name}", str(error))
    if not members:
        raise Fb3Error(f"{packed.path}: no run in it can be used: {summary.folds[0]['reason']}")
    return members


def _stand(sample: pd.DataFrame, packed: Bundle, members: list[Member], out: Path, summary: Summary) -> Standing:
    """Writes the training means, of all folds that can be read."""
    recipe = members[0].recipe
    found = []
    for member in members:
        for fold in member.folds:
            try:
                packed.check((fold / FOLD_JSON).relative_to(packed.path).as_posix())
                found.append(read_json(fold / FOLD_JSON)["target_means"])
            except Fb3Error as error:
                say(f"{error}: its means are not used")
    columns = [c for c in sample.columns if c != recipe.data.id_column]
    if set(columns) != set(recipe.data.target_columns):
        columns = list(recipe.data.target_columns)  # check_form refuses it, by name, when the essays are there
    middle = (recipe.task.minimum + recipe.task.maximum) / 2
    means = {c: float(np.mean([f[c] for f in found])) if found else middle for c in columns}
    standing = Standing(sample[recipe.data.id_column], means, (recipe.task.minimum, recipe.task.maximum), out)
    summary.phase("first file")
    say(f"{out}: {len(sample)} rows of training means stand after {time.monotonic() - summary.start:.1f} s")
    return standing


def _read_sample(data: Path, recipe: Recipe) -> pd.DataFrame:
    path = data / COMPETITION_MARKER
    sample = read_table(path, [recipe.data.id_column, *recipe.data.target_columns])
    check_ids(sample[recipe.data.id_column], path)
    return sample


def _sample_for(essays: pd.DataFrame, data: str | Path | None, recipe: Recipe, source: Path) -> pd.DataFrame:
    """The sample submission, or one of the test file's ids where there is none, or one of other ids."""
    identifier = recipe.data.id_column
    plain = essays[[identifier]].reindex(columns=[identifier, *recipe.data.target_columns])
    if data is None or not (Path(data) / COMPETITION_MARKER).is_file():
        return plain
    sample = _read_sample(Path(data), recipe)
    if not set(sample[identifier]) & set(essays[identifier]):
        say(f"{source}: other ids than {COMPETITION_MARKER}; the rows keep the order of {source.name}")
        return plain[sample.columns] if set(sample.columns) == set(plain.columns) else plain
    return sample


def _predict_all(
    packed: Bundle,
    members: list[Member],
    essays: pd.DataFrame,
    standing: Standing,
    summary: Summary,
    ends: float,
    strict: bool,
) -> None:
    """Fold by fold, the runs taking turns, so that each has its say when time runs out.

    Raises:
        Fb3Error: no fold could be used.
    """
    from fb3.worker import Workers  # torch and transformers, after the first file stands

    recipe = members[0].recipe
    ids = essays[recipe.data.id_column].to_numpy()
    workers = Workers([str(device) for device in pick_devices(broken=recipe.predict.broken_gpu)])
    say(f"{len(ids)} essays, {sum(len(m.folds) for m in members)} folds of {len(members)} runs")
    encoded = _tokenise(members, essays[recipe.data.text_column].tolist())
    summary.phase("tokens")
    clock = _Clock(members, encoded)
    summary.flops = clock.flops
    means: dict[str, Predictions] = {}
    counts = dict.fromkeys((m.name for m in members), 0)
    turns = sorted((k, m) for m, member in enumerate(members) for k in range(len(member.folds)))
    try:
        for k, m in turns:
            member = members[m]
            name = f"{member.name}/{member.folds[k].name}"
            left, wanted = ends - time.monotonic(), clock.estimate(member.name)
            if wanted > left or left <= 0:
                summary.left_out(name, f"no time: about {wanted:.0f} s needed, {max(left, 0):.0f} s left", "skipped")
                continue
            try:
                began = time.monotonic()
                predictions = _checked(packed, workers, member, k, encoded[member.name], ids, left)
            except Exception as error:
                if strict:
                    raise
                if not isinstance(error, Fb3Error):
                    say(traceback.format_exc())
                summary.left_out(name, str(error) or type(error).__name__)
                continue
            if len(predictions.ids) < len(ids):
                _cut_off(name, predictions, ids, standing, summary, alone=not means)
                continue
            clock.measured(member.name, time.monotonic() - began)
            summary.used(name, time.monotonic() - began)
            means[member.name] = _mean_with(means.get(member.name), predictions, counts[member.name], member.name)
            counts[member.name] += 1
            whole = average(list(means.values()), name="ensemble")
            standing.update(whole.ids, _ordered(whole, standing))
    finally:
        workers.close()
    if not means and not summary.partial:
        why = summary.folds[0]["reason"] if summary.folds else "there is none"
        raise Fb3Error(f"no fold could be used ({why}); {standing.out} holds the training means")


def _tokenise(members: list[Member], texts: list[str]) -> dict[str, Encoded]:
    """Tokens by run; once for all runs that tokenise alike."""
    from fb3.worker import encode

    made: dict[tuple, Encoded] = {}
    out = {}
    for member in members:
        data = member.recipe.data
        alike = (sha256(member.path / ENCODER / "tokenizer.json"), data.max_length, data.truncation)
        if alike not in made:
            made[alike] = encode(member, texts)
        out[member.name] = made[alike]
    return out


def _checked(
    packed: Bundle, workers: "Workers", member: Member, fold: int, encoded: Encoded, ids: np.ndarray, seconds: float
) -> Predictions:
    """One fold's predictions, after its files were compared with the manifest."""
    for file in packed.files_below(member.folds[fold]):
        packed.check(file)
    return workers.predict(member, fold, encoded, ids, seconds)


def _mean_with(mean: Predictions | None, further: Predictions, count: int, name: str) -> Predictions:
    """The mean of `count` folds and a further one."""
    return further if mean is None else average([mean, further], [count, 1], name)


def _ordered(predictions: Predictions, standing: Standing) -> np.ndarray:
    return predictions.values[:, [predictions.columns.index(name) for name in standing.columns]]


def _cut_off(
    name: str, predictions: Predictions, ids: np.ndarray, standing: Standing, summary: Summary, alone: bool
) -> None:
    """A fold that the deadline stopped midway: better than the means where nothing else is there, else dropped."""
    reached = f"{len(predictions.ids)} of {len(ids)} essays reached at the deadline"
    if alone and len(predictions.ids):
        standing.update(predictions.ids, _ordered(predictions, standing))
        summary.partial = True
        reached += ", the others keep the training means"
    summary.left_out(name, reached, "cut off")


class _Clock:
    """How long a fold will take, from the folds before it."""

    def __init__(self, members: list[Member], encoded: dict[str, Encoded]) -> None:
        self.flops = {
            m.name: float(forward_flops(read_json(m.path / ENCODER / "config.json"), encoded[m.name].lengths).sum())
            for m in members
        }
        self.seconds: dict[str, float] = {}

    def measured(self, run: str, seconds: float) -> None:
        self.seconds[run] = seconds

    def estimate(self, run: str) -> float:
        """Seconds; 0 while nothing was measured."""
        if run in self.seconds:
            return self.seconds[run]
        slowest = max((seconds / self.flops[name] for name, seconds in self.seconds.items()), default=0.0)
        return _UNSURE * slowest * self.flops[run]
