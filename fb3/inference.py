"""Inference: a bundle and a test file to a checked submission. Needs nothing that the competition image lacks."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fb3.bundle import Bundle, Member, verify_bundle
from fb3.checkpoint import load_fold
from fb3.ensemble import average
from fb3.errors import Fb3Error
from fb3.essays import Encoded, check_ids, read_essays, read_table, tokenise
from fb3.files import sha256, write_csv
from fb3.models import load_tokenizer
from fb3.prediction import Predictions, lower_weights, predict
from fb3.progress import say
from fb3.recipe import Recipe
from fb3.runtime import COMPETITION_MARKER, Precision, find_competition, pick_device, pick_precision
from fb3.submission import arrange, check_values
from fb3.tasks import build_task


def infer(
    bundle: str | Path,
    data: str | Path | None = None,
    out: str | Path = "submission.csv",
    *,
    test: str | Path | None = None,
) -> pd.DataFrame:
    """Predicts with every fold of every run in a bundle and writes the submission.

    Folds are averaged within a run, runs among each other with equal weights, by id; then clipped to the score range.

    Args:
        bundle: the folder that `write_bundle` made.
        data: the folder with test.csv and sample_submission.csv; none: found among the mounted inputs.
        out: the CSV to write.
        test: predict this file instead of data/test.csv. Where none of its ids is in the sample submission, the rows
            keep this file's order.

    Returns:
        What was written: the id column, then one column a target.

    Raises:
        Fb3Error: a damaged bundle, bad essays, ids that do not match; nothing is written then.
    """
    start = time.monotonic()
    if Path(out).is_dir():
        raise Fb3Error(f"{out}: is a folder; give a file with --out")
    packed = verify_bundle(bundle)
    members = packed.members()
    recipe = members[0].recipe
    if data is None and test is None:
        data = find_competition()
    source = Path(test) if test is not None else Path(data or ".") / "test.csv"
    essays = read_essays(source, recipe.data)
    ids = essays[recipe.data.id_column].to_numpy()
    sample = _sample(data, recipe, essays, source, own_order=test is not None)
    texts = essays[recipe.data.text_column].tolist()
    say(f"{len(essays)} essays, {sum(len(m.folds) for m in members)} folds of {len(members)} runs")
    predictions = average(_predict_members(packed, members, texts, ids), name="ensemble")
    table = predictions.frame(recipe.data.id_column)
    table.iloc[:, 1:] = build_task(recipe).clip(predictions.values)
    submission = arrange(table, sample, str(source))
    check_values(submission, recipe.task.minimum, recipe.task.maximum)
    write_csv(submission, out)
    say(f"{out}: {len(submission)} rows in {time.monotonic() - start:.1f} s")
    return submission


def _sample(
    data: str | Path | None, recipe: Recipe, essays: pd.DataFrame, source: Path, own_order: bool
) -> pd.DataFrame:
    """The sample submission, or with `own_order` one of the test file's ids where the sample's are others."""
    columns = [recipe.data.id_column, *recipe.data.target_columns]
    plain = essays[[recipe.data.id_column]].reindex(columns=columns)
    if data is None or (own_order and not (Path(data) / COMPETITION_MARKER).is_file()):
        return plain
    path = Path(data) / COMPETITION_MARKER
    sample = read_table(path, columns)
    check_ids(sample[recipe.data.id_column], path)
    if own_order and not set(sample[recipe.data.id_column]) & set(essays[recipe.data.id_column]):
        say(f"{source}: other ids than {path.name}; the rows keep the order of {source.name}")
        return plain[sample.columns] if set(sample.columns) == set(columns) else plain
    return sample


def _predict_members(packed: Bundle, members: list[Member], texts: list[str], ids: np.ndarray) -> list[Predictions]:
    """Each run's fold mean. Essays are tokenised once for all runs that tokenise alike."""
    device = pick_device()
    tokens: dict[tuple, Encoded] = {}
    out = []
    for member in members:
        data = member.recipe.data
        alike = (sha256(member.path / "encoder" / "tokenizer.json"), data.max_length, data.truncation)
        if alike not in tokens:
            tokens[alike] = tokenise(texts, *load_tokenizer(member.path / "encoder"), data)
        folds = [_predict_fold(member, fold, tokens[alike], ids, device) for fold in member.folds]
        out.append(average(folds, name=member.name))
    return out


def _predict_fold(member: Member, fold: Path, encoded: Encoded, ids: np.ndarray, device: torch.device) -> Predictions:
    """One fold's predictions. Where low precision overflows, the fold is predicted again in fp32, and that is said.

    Raises:
        Fb3Error: fp32 gives no number either.
    """
    name = f"{member.name}/{fold.name}"
    wish = member.recipe.predict.precision
    if wish == "fp16" and device.type == "cpu":
        say(f"{name}: predict.precision=fp16 is for GPUs; taking what is fast on this CPU")
        wish = "auto"
    first = pick_precision(wish, device, "predict.precision")
    for precision in dict.fromkeys([first, "fp32"]):
        predictions = _predict_once(member, fold, encoded, ids, device, precision, name)
        bad = ~np.isfinite(predictions.values).all(1)
        if not bad.any():
            return predictions
        say(f"{name}: {bad.sum()} essays got no number in {precision}, first {predictions.ids[bad][0]}")
    raise Fb3Error(f"{fold}: predicts NaN even in fp32; leave this fold out of the bundle")


def _predict_once(
    member: Member,
    fold: Path,
    encoded: Encoded,
    ids: np.ndarray,
    device: torch.device,
    precision: Precision,
    name: str,
) -> Predictions:
    scorer = load_fold(member.recipe, member.path / "encoder", fold).to(device)
    return predict(
        lower_weights(scorer, precision),
        build_task(member.recipe),
        encoded,
        ids,
        precision=precision,
        token_budget=member.recipe.predict.token_budget,
        name=name,
    )
