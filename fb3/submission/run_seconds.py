"""Seconds that runs take at inference: by FLOPs on a T4, or measured on this machine."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.tables import read_table
from fb3.ensembles.frontier import TimeLimit
from fb3.errors import Fb3Error, nearest
from fb3.models.flops import T4_FLOPS
from fb3.prediction.frame_vectors import with_vectors
from fb3.prediction.member_inputs import encode_read, passes
from fb3.prediction.run_flops import fold_flops, trained_run
from fb3.runs.run_folder import Member, training_essays
from fb3.submission.picture_seconds import picture_seconds
from fb3.system.compressed_files import stored_file
from fb3.system.file_names import OOF, image_encoder_folder
from fb3.system.kaggle import parse_duration
from fb3.system.progress import say

MACHINES = ("t4", "here")
_HIDDEN = 2700  # essays of FB3's hidden test, and about as many as other competitions' had
_REAL = 100  # rows of a test.csv that is the test itself; a code competition shows a handful
_T4_START = 60.0  # seconds for imports, tokens and the first weights on a T4
_FEW, _MANY = 4, 32  # essays that are predicted here: their difference is free of loading


def price_members(
    paths: Sequence[Path], limit: str, essays: int | None = None, machine: str = "t4", data: Path | None = None
) -> tuple[list[Path], TimeLimit]:
    """The trained runs among members, and the limit with their seconds; others have no model, and are named.

    Args:
        limit: a duration, such as 2h.
        essays: how many inference has to predict; none: the rows of data's test.csv, or 2,700 where this is a sample.
        machine: a name in `MACHINES`.
        data: the competition's folder.

    Raises:
        Fb3Error: an unknown machine, a bad duration, no trained run, or an estimator or pictures whose training essays
            are not known.
    """
    if machine not in MACHINES:
        raise Fb3Error(f"--machine {machine}: no such machine; {nearest(machine, MACHINES)}")
    folders = {path: path.parent if path.name == OOF else path for path in paths}
    seconds, found = parse_duration(limit), {path: trained_run(folder) for path, folder in folders.items()}
    runs = {path: run for path, run in found.items() if run}
    if not runs:
        raise Fb3Error("--limit: no trained run among the members, so nothing takes time; leave out --limit")
    for path in found.keys() - runs.keys():
        say(f"WARNING: {path}: no trained run, so nothing can predict with it; --limit leaves it out")
    if essays is None:
        essays, words = _test_rows(next(iter(runs.values())), data)
        say(words)
    if machine == "t4":
        price = {path: len(run.folds) * essays * fold_flops(run, data) / T4_FLOPS for path, run in runs.items()}
        for path in [path for path, each in price.items() if np.isnan(each)]:
            training_essays(runs[path].path, runs[path], data)  # an estimator that is priced by them alone
        shared = picture_seconds([*runs.values()], essays, data, measured=False)
        return list(runs), TimeLimit(seconds, _T4_START, [*price.values()], f"a T4 by FLOPs, {essays} essays", shared)
    begun = time.monotonic()
    import fb3.prediction.fold_prediction  # noqa: F401  torch; inference waits for it too

    start, each = time.monotonic() - begun, [_measured(run, essays, data) for run in runs.values()]
    shared = picture_seconds([*runs.values()], essays, data, measured=True)
    return list(runs), TimeLimit(seconds, start, each, f"this machine, {essays} essays", shared)


def _test_rows(run: Member, data: Path | None) -> tuple[int, str]:
    """The number of essays to predict, and the reason."""
    settings = run.recipe.data
    file = stored_file(data / settings.files.test) if data else None
    if file and file.is_file():
        rows = len(read_table(file, [settings.id_column]))
        if rows >= _REAL:
            return rows, f"--limit: {rows} essays, the rows of {file}; --essays N for others"
    return _HIDDEN, f"--limit: {_HIDDEN} essays, because no test.csv tells how many; --essays N for others"


def _measured(run: Member, essays: int, data: Path | None) -> float:
    """Seconds of all folds: one fold is loaded and predicts some training essays, few and then more."""
    from fb3.prediction.fold_prediction import predict_fold
    from fb3.system.devices import pick_device

    texts = training_essays(run.path, run, data)
    some = texts.sample(min(_FEW + _MANY, len(texts)), random_state=0).reset_index()
    some = with_vectors(some, run.recipe, image_encoder_folder(run.path))

    def timed(part: pd.DataFrame) -> tuple[float, float, float, int]:
        begun = time.monotonic()
        encoded = encode_read(run, part)
        tokenised = time.monotonic()
        predict_fold(run, 0, encoded, part[run.recipe.data.id_column].to_numpy(), str(pick_device()), shown=False)
        seconds = time.monotonic() - tokenised
        return encoded.total_lengths.sum(), tokenised - begun, seconds, passes(run, encoded)

    timed(some[:1])  # the first call of a process pays for more than its essay
    few, _, loading, _ = timed(some[:_FEW])
    many, tokenising, predicting, times = timed(some[_FEW:])
    per_token = max(predicting - loading, 0.0) / max(many - few, 1)
    tokens, load = essays * many / len(some[_FEW:]), max(loading - per_token * few, 0.0)
    seconds = len(run.folds) * load + times * per_token * tokens + tokenising * essays / len(some[_FEW:])
    say(f"{run.name}: {len(run.folds)} folds, about {seconds:.0f} s ({load:.1f} s to load one)")
    return seconds
