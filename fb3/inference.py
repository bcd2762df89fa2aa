"""Inference: a bundle and a test file to a submission that is valid at every moment. Needs nothing but the image.

The first file, of training means, is written before torch is imported; each fold then replaces it.
"""

import math
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.bundle import Bundle, Checks, Member, in_turn, read_bundle
from fb3.errors import Fb3Error
from fb3.essays import check_ids, read_essays, read_table
from fb3.files import check_place, read_json
from fb3.layout import ENCODER, FOLD_JSON, RECIPE, SECOND, encoder_files
from fb3.progress import say
from fb3.recipe import Recipe, load_recipe
from fb3.runtime import COMPETITION_MARKER, find_competition, hidden_rerun, parse_duration, session_seconds
from fb3.scoring import caveats
from fb3.submission import Standing, check_form
from fb3.summary import Summary

_MARGIN = 0.05  # share of the limit that is kept for what comes after
_LIMIT_HOURS = 9.0  # where no recipe can be read


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
        out: the CSV to write, a plain file that is there or is not; a link's target is written.
        test: predict this file instead of data/test.csv. Where none of its ids is in the sample submission, the rows
            keep this file's order.
        deadline: seconds from now, or a text such as 8h30m; none: the recipe's predict.limit_hours less 5 %, and in a
            notebook that Kaggle runs as a whole less what its session has taken already.
        strict: a fold that cannot be used is an error.

    Returns:
        What was written: the id column, then one column a target.

    Raises:
        Fb3Error: no fold could be used, or bad essays, or ids that do not match. Except in Kaggle's run on the hidden
            rows: an error would cost the submission, so there the file stays as it stands, and the error is printed.
    """
    start, out = time.monotonic(), check_place(out, plain=True)
    packed = read_bundle(bundle)
    packed.check_trained()
    summary = Summary(out.with_suffix(".report.json"), start)
    summary.begin()
    members = _whole_members(packed, summary, strict)
    recipe = members[0].recipe if members else None
    data = find_competition() if data is None and test is None else data
    ends = start + _seconds(deadline, members)
    standing = None
    try:
        if test is None:
            sample = _read_sample(Path(data), recipe)
            standing = _stand(sample, packed, recipe, out, summary)
        if recipe is None:
            why = summary.folds[0]["reason"] if summary.folds else "there is none"
            raise Fb3Error(f"{packed.path}: no run in it can be used: {why}")
        source = Path(test) if test is not None else Path(data) / "test.csv"
        essays = read_essays(source, recipe.data)
        if test is not None:
            sample = _sample_for(essays, data, recipe, source)
            standing = _stand(sample, packed, recipe, out, summary)
        check_form(essays[recipe.data.id_column], sample, list(recipe.data.target_columns), str(source))
        _tell_caveats(members)
        checks = Checks(packed, [member.folds[k] for member, k in in_turn(members)])
        from fb3.tokenising import begin_tokens  # this and what follows after the first file stands

        tokens, ids = begin_tokens(members, essays), essays[recipe.data.id_column].to_numpy()
        del essays  # once they are tokens; many texts are no small part of the memory
        from fb3.turns import Turns  # torch and transformers

        Turns(checks, members, ids, tokens, standing, summary, ends, strict).run()
    except Exception as error:
        summary.error = str(error) or type(error).__name__
        if strict or standing is None or not hidden_rerun():
            raise
        say(traceback.format_exc())
        say(f"ERROR, but this is the run on the hidden rows: {out} stays as it stands ({error})")
    finally:
        if standing is not None:
            summary.finish(out, len(standing.table))
    return standing.table.reset_index()


def _tell_caveats(members: list[Member]) -> None:
    for member in members:
        with suppress(Exception):  # what is amiss in these files costs words, not the submission
            if found := caveats(member.path, member.recipe):
                say(f"{member.name}: its out-of-fold score is no CV: {'; '.join(found)}")


def _seconds(deadline: str | float | None, members: list[Member]) -> float:
    if deadline is not None:
        return parse_duration(str(deadline))
    limit = min((member.recipe.predict.limit_hours for member in members), default=_LIMIT_HOURS)
    return limit * 3600 * (1 - _MARGIN) - session_seconds()


def _whole_members(packed: Bundle, summary: Summary, strict: bool) -> list[Member]:
    """The runs whose recipe and encoder folder are as they were packed.

    Raises:
        Fb3Error: with `strict`, one is not.
    """
    members = []
    for name, path, folds in packed.runs():
        try:
            packed.check((path / RECIPE).relative_to(packed.path).as_posix())
            recipe = load_recipe(path / RECIPE)
            second = bool(recipe.model.stitch) or (path / ENCODER / SECOND).is_dir()
            packed.check_below(path / ENCODER, encoder_files(second))
            members.append(Member(name, path, recipe, folds))
        except Exception as error:
            if strict:
                raise
            for fold in folds:
                summary.left_out(f"{name}/{fold.name}", str(error) or type(error).__name__)
    return members


def _stand(sample: pd.DataFrame, packed: Bundle, recipe: Recipe | None, out: Path, summary: Summary) -> Standing:
    """Writes the training means, of all folds that can be read, in the form of the sample submission."""
    identifier = recipe.data.id_column if recipe else sample.columns[0]
    columns = [c for c in sample.columns if c != identifier]
    if recipe and set(columns) != set(recipe.data.target_columns):
        columns = list(recipe.data.target_columns)  # check_form refuses it, by name, when the essays are there
    bounds = (recipe.task.minimum, recipe.task.maximum) if recipe else (-np.inf, np.inf)
    found = _training_means(packed, columns)
    if not found:
        say(f"{packed.path}: no fold tells its training means; the middle of the range stands in")
    middle = (bounds[0] + bounds[1]) / 2 if recipe else 0.0
    means = {c: float(np.mean([f[c] for f in found])) if found else middle for c in columns}
    standing = Standing(sample[identifier], means, bounds, out)
    summary.phase("first file")
    say(f"{out}: {len(sample)} rows of training means stand after {time.monotonic() - summary.start:.1f} s")
    return standing


def _training_means(packed: Bundle, columns: list[str]) -> list[dict[str, float]]:
    found = []
    for _, _, folds in packed.runs():
        for fold in folds:
            try:
                packed.check((fold / FOLD_JSON).relative_to(packed.path).as_posix())
                means = read_json(fold / FOLD_JSON, {"target_means": dict})["target_means"]
                numbers = {column: float(means[column]) for column in columns}
                if not all(map(math.isfinite, numbers.values())):
                    raise Fb3Error(f"{fold / FOLD_JSON}: target_means are {numbers}")
                found.append(numbers)
            except Exception as error:  # the first file is to stand whatever a fold says
                why = error if isinstance(error, Fb3Error) else f"{fold / FOLD_JSON}: {error!r}"
                say(f"{why}: its means are not used")
    return found


def _read_sample(data: Path, recipe: Recipe | None) -> pd.DataFrame:
    path = data / COMPETITION_MARKER
    sample = read_table(path, [recipe.data.id_column, *recipe.data.target_columns] if recipe else [])
    check_ids(sample[recipe.data.id_column if recipe else sample.columns[0]], path)
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
