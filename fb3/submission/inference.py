"""Inference: a bundle and test.csv become a submission that is valid at every moment.

The first file holds the training means and is written before torch is imported; each fold then replaces it. Every
module imported on the way is in the competition's image.
"""

import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.bundles.bundle import Bundle, read_bundle
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.data import FilesSettings
from fb3.runs.run_folder import Member, in_turn, own_prepare, reading_recipe
from fb3.runs.scores import caveats
from fb3.submission.form import SubmissionForm, read_sample, read_test
from fb3.submission.given_predictions import read_given
from fb3.submission.submission_file import SubmissionFile, write_first_file
from fb3.submission.summary import Summary
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import DECISION, MANIFEST, PREPARE, RECIPE, image_encoder_folder
from fb3.system.files import check_output_path, read_json
from fb3.system.kaggle import find_competition, hidden_rerun, parse_duration, session_seconds
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.targets.decisions import Decision, decide

_MARGIN = 0.05  # share of the limit that is kept free
_PICTURES_SHARE = 0.6  # share of the time left in which vectors of pictures are computed
_LIMIT_HOURS = 9.0  # the limit where no recipe can be read


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

    Folds are averaged by id within each run, then the runs, with equal weights or with the ones of the ensemble that
    was packed, and the mean is clipped to the score range. The file holds the training means before the first fold is
    loaded, and is replaced whole after each fold. A fold that is damaged, fails, or no longer fits into the time is
    left out, with a warning, and the others weigh more.
    A report stands beside `out`, with the suffix .report.json.

    Args:
        bundle: the folder that `write_bundle` made.
        data: the folder with test.csv and sample_submission.csv; none: found among the mounted inputs.
        out: the CSV to write: a plain file, new or old. Where it is a link, its target is written.
        test: predict this file instead of data/test.csv. Where none of its ids is in the sample submission, the rows
            keep this file's order.
        deadline: seconds from now, or a text such as 8h30m; none: the recipe's predict.limit_hours less 5 %, and less
            the time that the session has run where Kaggle runs the whole notebook.
        strict: a fold that cannot be used, or files that do not fit together, are errors, also on the hidden rows.

    Returns:
        The submission: the id column, then one column a target.

    Raises:
        Fb3Error: no fold could be used, or bad essays, or ids that do not match. Kaggle's run on the hidden rows raises
            none, because that would cost the submission: the error is printed and the file stays as it is. Where ids
            do not match, it has test.csv's rows there, because those are scored.
    """
    start, out = time.monotonic(), check_output_path(out, plain=True)
    packed = read_bundle(bundle)
    packed.check_trained()
    summary = Summary(out.with_suffix(".report.json"), start)
    members = _usable_runs(packed, summary, strict)
    recipe = reading_recipe(members) if members else None
    target = target_of(recipe, packed_decision(packed, recipe, strict)) if recipe else None
    if recipe and not packed.weighs(target.columns):
        packed, members = _unweighed(packed, members, summary, strict)
    files = recipe.data.files if recipe else FilesSettings()
    data = find_competition(names=files.markers()) if data is None and test is None else data
    ends = start + _seconds(deadline, members)
    source, sample = _sources(data, test, files)
    rerun, submission = hidden_rerun(), None
    try:
        form = read_sample(sample, recipe, target, rerun=rerun)
        if recipe is None and form.ids is None:
            raise _no_run(packed, summary)
        if test is None and form.ids is not None:  # before test.csv is read, which may take long
            submission = write_first_file(form, packed, target, out, summary)
        first = form.ids
        read_test(form, source, recipe, own_order=test is not None, rerun=rerun, folder=data)
        if submission is None or form.ids is not first:
            submission = write_first_file(form, packed, target, out, summary)
        summary.warn(form.warnings)
        if recipe is None:
            raise _no_run(packed, summary)
        if form.error or (strict and form.warnings):
            raise form.error or Fb3Error(form.warnings[0])
        _predict(packed, members, form, submission, summary, ends, strict)
    except Exception as error:
        summary.error = str(error) or type(error).__name__
        if strict or submission is None or not rerun:
            raise
        say(traceback.format_exc())
        say(f"ERROR, but this is the run on the hidden rows: {out} stays as it stands ({error})")
    finally:
        if submission is not None:
            summary.finish(out, len(submission.frame))
    return submission.frame


def _unweighed(packed: Bundle, members: list[Member], summary: Summary, strict: bool) -> tuple[Bundle, list[Member]]:
    """The bundle and its runs without weights that are for other columns than the runs'."""
    error = Fb3Error(
        f"{packed.path / MANIFEST}: its weights are for other columns than its runs; build the bundle anew"
    )
    if strict:
        raise error
    summary.warn([f"{error}. All runs weigh alike"])
    return packed.unweighed(), [replace(member, weights=None) for member in members]


def packed_decision(packed: Bundle, recipe: Recipe, strict: bool) -> Decision | None:
    """The bundle's fitted decision; none where it has none, or it cannot be applied: rounding then stands in."""
    if DECISION not in packed.manifest["files"]:
        return None
    try:
        packed.check(DECISION)
        decision = Decision.from_json(read_json(packed.path / DECISION), packed.path / DECISION)
        decide(decision, np.zeros((1, len(target_of(recipe).columns))))
        return decision
    except Exception as error:
        if strict:
            raise
        say(f"WARNING: {error}: rounding, the likeliest class or 0.5 stand in for it")
        return None


def _usable_runs(packed: Bundle, summary: Summary, strict: bool) -> list[Member]:
    """The runs whose recipe, prepare.py and encoder are as they were packed; with `strict`, others are an Fb3Error."""
    members, weights = [], packed.weights()
    for name, path, folds in packed.runs():
        try:
            packed.check((path / RECIPE).relative_to(packed.path).as_posix())
            recipe = load_recipe(path / RECIPE)
            if own_prepare(path, recipe):
                packed.check((path / PREPARE).relative_to(packed.path).as_posix())
            packed.check_shared(path, recipe)
            members.append(Member(name, path, recipe, folds, weights[name]))
        except Exception as error:
            if strict:
                raise
            for fold in folds:
                summary.left_out(f"{name}/{fold.name}", str(error) or type(error).__name__)
    return members


def _seconds(deadline: str | float | None, members: list[Member]) -> float:
    if deadline is not None:
        return parse_duration(str(deadline))
    limit = min((member.recipe.predict.limit_hours for member in members), default=_LIMIT_HOURS)
    return limit * 3600 * (1 - _MARGIN) - session_seconds()


def _sources(data: str | Path | None, test: str | Path | None, files: FilesSettings) -> tuple[Path, Path | None]:
    """The essays' file, and the sample submission, which gives the rows their order."""
    sample = None if data is None or files.sample is None else stored_file(Path(data) / files.sample)
    if test is None:
        return stored_file(Path(data) / files.test), sample
    return Path(test), sample if sample and sample.is_file() else None


def _no_run(packed: Bundle, summary: Summary) -> Fb3Error:
    why = summary.folds[0]["reason"] if summary.folds else "there is none"
    return Fb3Error(f"{packed.path}: no run in it can be used: {why}")


def _predict(
    packed: Bundle,
    members: list[Member],
    form: SubmissionForm,
    submission: SubmissionFile,
    summary: Summary,
    ends: float,
    strict: bool,
) -> None:
    """Improves the submission fold by fold. Tokenizers and torch are imported only here, after the first file."""
    _tell_caveats(members)
    if not (members := _with_pictures(packed, members, form.essays, summary, ends, strict)):
        raise _no_run(packed, summary)
    from fb3.submission.background import FoldChecks, begin_tokens

    checks = FoldChecks(packed, [member.folds[k] for member, k in in_turn(members)])
    recipe = members[0].recipe
    tokens, ids = begin_tokens(members, form.essays), form.essays[recipe.data.id_column].to_numpy()
    form.essays = None  # frees the texts, a good part of the memory, once they are tokens
    from fb3.submission.fold_queue import FoldQueue

    averaging, given = packed.averaging(target_of(recipe)), read_given(packed, recipe, ids, summary)
    FoldQueue(checks, members, ids, tokens, submission, summary, averaging, given, ends, strict).run()


def _with_pictures(
    packed: Bundle, members: list[Member], essays: pd.DataFrame, summary: Summary, ends: float, strict: bool
) -> list[Member]:
    """The runs whose pictures, if they read any, have become vectors, in some of the time; they find them in the cache.

    A thread would import torch beside this one's import of it, and one of both would find half a module.
    """
    usable, now = [], time.monotonic()
    until = now + _PICTURES_SHARE * (ends - now)
    for member in members:
        try:
            if member.recipe.data.image_encoder:
                from fb3.prediction.frame_vectors import with_vectors

                packed.check_image_encoder(member.path, member.recipe)
                with_vectors(essays, member.recipe, image_encoder_folder(member.path), until=until)
                summary.phase("pictures")
            usable.append(member)
        except Exception as error:
            if strict:
                raise
            for fold in member.folds:
                summary.left_out(f"{member.name}/{fold.name}", str(error) or type(error).__name__)
    return usable


def _tell_caveats(members: list[Member]) -> None:
    for member in members:
        with suppress(Exception):  # a fault in these files costs only these words
            if found := caveats(member.path, member.recipe):
                say(f"{member.name}: its out-of-fold score is no CV: {'; '.join(found)}")
