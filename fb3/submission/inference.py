"""Inference: a bundle and a test file to a submission that is valid at every moment. Needs nothing but the image.

The first file, of training means, is written before torch is imported; each fold then replaces it.
"""

import time
import traceback
from contextlib import suppress
from pathlib import Path

import pandas as pd

from fb3.bundles.bundle import Bundle, read_bundle
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.run_folder import Member, in_turn
from fb3.runs.scores import caveats
from fb3.submission.background import Checks
from fb3.submission.first_file import stand
from fb3.submission.form import SubmissionForm, add_essays, asked_by_sample
from fb3.submission.submission_file import Standing
from fb3.submission.summary import Summary
from fb3.system.file_names import ENCODER, RECIPE, SECOND, encoder_files
from fb3.system.files import check_output_path
from fb3.system.kaggle import COMPETITION_MARKER, TEST, find_competition, hidden_rerun, parse_duration, session_seconds
from fb3.system.progress import say

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
        strict: a fold that cannot be used is an error, and so are files that do not fit each other, everywhere.

    Returns:
        What was written: the id column, then one column a target.

    Raises:
        Fb3Error: no fold could be used, or bad essays, or ids that do not match. Except in Kaggle's run on the hidden
            rows: an error would cost the submission, so there the file stays as it stands, and the error is printed;
            where ids do not match, it has test.csv's rows, those that are scored.
    """
    start, out = time.monotonic(), check_output_path(out, plain=True)
    packed = read_bundle(bundle)
    packed.check_trained()
    summary = Summary(out.with_suffix(".report.json"), start)
    summary.begin()
    members = _whole_members(packed, summary, strict)
    recipe = members[0].recipe if members else None
    data = find_competition() if data is None and test is None else data
    ends = start + _seconds(deadline, members)
    source, sample = _sources(data, test)
    rerun, standing = hidden_rerun(), None
    try:
        asked = asked_by_sample(sample, recipe, rerun=rerun)
        if recipe is None and asked.ids is None:
            raise _no_run(packed, summary)
        if test is None and (first := asked.ids) is not None:
            standing = stand(asked, packed, recipe, out, summary)  # before test.csv is read, which may be large
        add_essays(asked, source, recipe, own_order=test is not None, rerun=rerun)
        if standing is None or asked.ids is not first:
            standing = stand(asked, packed, recipe, out, summary)
        summary.warn(asked.warnings)
        if recipe is None:
            raise _no_run(packed, summary)
        if asked.error or (strict and asked.warnings):
            raise asked.error or Fb3Error(asked.warnings[0])
        _predict(packed, members, asked, standing, summary, ends, strict)
    except Exception as error:
        summary.error = str(error) or type(error).__name__
        if strict or standing is None or not rerun:
            raise
        say(traceback.format_exc())
        say(f"ERROR, but this is the run on the hidden rows: {out} stays as it stands ({error})")
    finally:
        if standing is not None:
            summary.finish(out, len(standing.table))
    return standing.table.reset_index()


def _sources(data: str | Path | None, test: str | Path | None) -> tuple[Path, Path | None]:
    """The essays' file, and the sample submission that gives the rows their order."""
    sample = None if data is None else Path(data) / COMPETITION_MARKER
    if test is None:
        return Path(data) / TEST, sample
    return Path(test), sample if sample and sample.is_file() else None


def _no_run(packed: Bundle, summary: Summary) -> Fb3Error:
    why = summary.folds[0]["reason"] if summary.folds else "there is none"
    return Fb3Error(f"{packed.path}: no run in it can be used: {why}")


def _predict(
    packed: Bundle,
    members: list[Member],
    asked: SubmissionForm,
    standing: Standing,
    summary: Summary,
    ends: float,
    strict: bool,
) -> None:
    """The folds, from here on with tokenizers and torch: the first file stands."""
    _tell_caveats(members)
    checks = Checks(packed, [member.folds[k] for member, k in in_turn(members)])
    from fb3.submission.background import begin_tokens

    tokens, ids = begin_tokens(members, asked.essays), asked.essays[members[0].recipe.data.id_column].to_numpy()
    asked.essays = None  # many texts are no small part of the memory, and are not needed once they are tokens
    from fb3.submission.fold_queue import FoldQueue

    FoldQueue(checks, members, ids, tokens, standing, summary, ends, strict).run()


def _tell_caveats(members: list[Member]) -> None:
    for member in members:
        with suppress(Exception):  # a fault in these files costs words, not the submission
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
