"""A run of an estimator on fixed features: the same folds, files and scores as a fine-tuned run's."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from fb3.data.folds import FoldSplit
from fb3.data.pseudo_essays import PseudoEssays
from fb3.data.tfidf import learn_vocabulary, tfidf
from fb3.data.tokens import encode_essays
from fb3.errors import Fb3Error, Stopped
from fb3.prediction.estimators.embeddings import vectors
from fb3.prediction.estimators.estimator_fold import Features, estimate_fold, vocabulary_file
from fb3.prediction.estimators.feature_inputs import FeatureInputs, encode_features, source_recipe, tokens_hash
from fb3.prediction.estimators.feature_matrix import beside, fit_scales, scaled
from fb3.prediction.predictions import Predictions
from fb3.prediction.scorer_prediction import How
from fb3.recipe import Recipe
from fb3.recipe.estimator import KEEPS_ESSAYS
from fb3.recipe.task import LabelsSettings
from fb3.runs.checkpoint import read_weights, write_weights
from fb3.runs.fold_json import digest_of
from fb3.system.devices import Precision
from fb3.system.file_names import FEATURES, FOLD_JSON, VECTORS, WEIGHTS, feature_folder, fold_folder
from fb3.system.files import read_json, sha256, write_json, write_text
from fb3.system.progress import progress, say
from fb3.tasks.build import build_task
from fb3.training.best_checkpoint import fold_info
from fb3.training.estimators.feature_sources import copy_fold_sources, write_sources
from fb3.training.estimators.fitting import KERNEL_AT_ONCE, fit
from fb3.training.saves import stop_reason
from fb3.training.session import Evaluation, Session, open_log

_AT_ONCE = 512  # essays, after whose vectors the run folder is up to date
# Seconds of one column over the square of its essays, by measurement on one core: with a kernel that is in memory, and
# for each feature where libsvm computes the kernel again and again.
_SVR_SECONDS, _KERNEL_SECONDS = 5e-8, 5e-10
_LONG = 120  # seconds of a fold, above which they are told


def open_estimator_session(
    recipe: Recipe,
    essays: pd.DataFrame,
    out: Path,
    accelerator: Accelerator,
    precision: Precision,
    unlabelled: pd.DataFrame | None = None,
    pseudo: PseudoEssays | None = None,
) -> Session:
    """Writes the encoders' folders and reads all essays as features; see `fb3.training.session.open_session`."""
    if accelerator.num_processes > 1:
        raise Fb3Error("estimator: several processes would each fit the same; use one")
    write_sources(recipe, essays, out)
    task = build_task(recipe)
    return Session(
        recipe=recipe,
        essays=essays,
        out=out,
        accelerator=accelerator,
        precision=precision,
        task=task,
        encoded=encode_features(out, recipe, essays, encode_essays),
        targets=task.target.truths(essays),
        log=open_log(out, accelerator),
    )


def run_estimator_fold(session: Session, split: FoldSplit) -> Predictions:
    """Fits one fold into the run folder; returns its out-of-fold predictions, not clipped."""
    recipe, out, began = session.recipe, session.out, time.monotonic()
    folder, fold = fold_folder(out, split.fold), split.fold
    kind, train, valid = recipe.estimator.kind, split.train_rows, split.valid_rows
    session.log.event(
        "fold",
        f"fold {fold}: {len(train)} essays to train on, {len(valid)} to validate, {kind}",
        fold=fold,
        train=len(train),
        valid=len(valid),
    )
    copy_fold_sources(recipe, out, fold)
    features = _features(session, fold)
    _fit_fold(session, split, features.of(train))
    values = estimate_fold(out, recipe, folder, features.of(valid))
    ids = session.ids[valid]
    predictions = Predictions(ids, values, session.target.columns, f"fold {fold} validation")
    score, seconds = session.task.score(session.targets[valid], values), time.monotonic() - began
    own = {file.relative_to(out).as_posix(): sha256(file) for file in _own_files(out, recipe, folder)}
    info = {
        **fold_info(session, split, score, recipe.train.seed + fold),
        "seconds": round(seconds, 1),
        "sha256": sha256(folder / WEIGHTS),
        "files": own,
    }
    write_json(info, folder / FOLD_JSON)
    session.log.evaluation(fold, 1, 1, session.target.metric.title, score, True, seconds)
    if session.on_evaluation:
        session.on_evaluation(Evaluation(fold, 1.0, score))
    return predictions


def _features(session: Session, fold: int) -> Features:
    """The features of all training essays, as one fold sees them."""
    inputs: FeatureInputs = session.encoded
    blocks = [_vectors(session, number, fold) for number in inputs.tokens]
    return Features(blocks, inputs.statistics, inputs.counts, inputs.frames)


def _vectors(session: Session, feature: int, fold: int) -> np.ndarray:
    """A feature's vectors of all N essays, (N, D) float16: a fold's own, or the run's."""
    out, encoded = session.out, session.encoded.tokens[feature]
    shared = source_recipe(out, feature) is None
    name = f"vectors of feature {feature}" + ("" if shared else f", fold {fold}")
    how = How(name, str(session.accelerator.device), session.recipe.predict, None, session.precision)
    rows, folder = np.arange(len(encoded.rows)), fold_folder(out, fold)
    if not shared:
        return vectors(out, session.recipe, feature, folder, encoded, rows, how)[0]

    def compute(some: np.ndarray) -> np.ndarray:
        return vectors(out, session.recipe, feature, folder, encoded, some, replace(how, shown=False))[0]

    return _shared_vectors(session, feature_folder(out, feature), tokens_hash(encoded, rows), len(rows), compute)


def _shared_vectors(
    session: Session, home: Path, tokens: str, count: int, compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A plain encoder's vectors of N essays, computed once for all folds and kept, so that a stopped run goes on.

    Args:
        session: says whether to stop.
        home: the feature's folder.
        tokens: the hash of the essays' tokens; vectors of others are computed anew.
        count: N.
        compute: gives the vectors of some rows.
    """
    file, note = home / VECTORS, (home / VECTORS).with_suffix(".json")
    done, found = 0, np.zeros((0, 0), np.float16)
    if note.is_file() and (said := read_json(note)).get("tokens") == tokens and said.get("sha256") == digest_of(file):
        found = read_weights(file)["vectors"].numpy()
        done = len(found)
    with progress(f"vectors of feature {home.name}", count, done < count, done=done) as advance:
        for start in range(done, count, _AT_ONCE):
            if reason := stop_reason(session):
                raise Stopped(f"{reason}: vectors of {start} of {count} essays are kept; the same command goes on")
            part = compute(np.arange(start, min(count, start + _AT_ONCE)))
            found = np.concatenate([found, part]) if start else part
            write_weights({"vectors": torch.from_numpy(found)}, file)
            write_json({"tokens": tokens, "sha256": sha256(file)}, note)
            advance(len(part))
    return found


def _fit_fold(session: Session, split: FoldSplit, features: Features) -> None:
    """Fits scales, vocabularies and the estimator to the training essays, and writes them into the fold's folder."""
    recipe, folder = session.recipe, fold_folder(session.out, split.fold)
    settings, seed = recipe.estimator, recipe.train.seed + split.fold
    mean = None if features.frames is None else _mean_of_frames(features.frames)
    blocks = features.filled(mean)
    tensors = fit_scales(blocks, features.statistics, settings.statistics_weight)
    tensors |= {} if mean is None else {"frames_mean": mean}
    files, terms = {}, []
    for number, found in features.counts.items():
        vocabulary, idf = learn_vocabulary(found, settings.features[number])
        if not vocabulary:
            raise Fb3Error(
                f"estimator.features[{number}]: no term is in min_texts training texts; give a smaller number"
            )
        files[vocabulary_file(folder, number).name] = json.dumps({"terms": vocabulary}, ensure_ascii=False)
        tensors[f"idf.{number}"] = idf
        terms.append(tfidf(found.of(vocabulary), idf))
    x = beside(scaled(blocks, features.statistics, tensors, settings.statistics_weight), terms)
    y = session.targets[split.train_rows].astype(np.float64)
    _tell_price(split.fold, settings.kind, x.shape, y.shape[1])
    title = f"fold {split.fold}: {settings.kind}, columns"
    fitted = fit(settings, x, y, isinstance(recipe.task, LabelsSettings), seed, title)
    tensors |= fitted.tensors
    if settings.kind in KEEPS_ESSAYS:
        tensors |= _kept(session, split, features, fitted.rows)
        tensors |= {} if mean is None else {"frames": blocks[-1][fitted.rows]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**files, **fitted.files}.items():
        write_text(text, folder / name)
    write_weights({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in tensors.items()}, folder / WEIGHTS)


def _mean_of_frames(frames: np.ndarray) -> np.ndarray:
    """The mean over the items that have frames, (D,) float16."""
    there = frames[~np.isnan(frames).any(1)]
    if not len(there):
        raise Fb3Error("estimator.features: no training item of the fold has frames; leave kind frames out")
    return there.mean(0, dtype=np.float64).astype(np.float16)


def _kept(session: Session, split: FoldSplit, features: Features, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The features of the training essays that a fold keeps: rows of the run's vectors, or the fold's own vectors."""
    kept = {"rows": split.train_rows[rows]}
    for number, block in zip(session.encoded.tokens, features.blocks, strict=True):
        if source_recipe(session.out, number):
            kept[f"vectors.{number}"] = block[rows]
    if features.statistics is not None:
        kept["statistics"] = features.statistics[rows]
    return kept


def _own_files(out: Path, recipe: Recipe, folder: Path) -> list[Path]:
    """The files of a fold beside its weights: vocabularies, LightGBM's models, encoders, and the vectors it reads."""
    own = [*folder.glob("vocabulary*.json"), *folder.glob("lightgbm*.txt"), *(folder / FEATURES).rglob("*")]
    own += (out / FEATURES).glob(f"*/{VECTORS}") if recipe.estimator.kind in KEEPS_ESSAYS else []
    return sorted(file for file in own if file.is_file())


def _tell_price(fold: int, kind: str, shape: tuple[int, int], columns: int) -> None:
    """Says how long a fold of SVR takes, where that is long: its time grows with the square of the essays."""
    seconds = shape[0] ** 2 * columns * (_KERNEL_SECONDS * shape[1] if shape[0] > KERNEL_AT_ONCE else _SVR_SECONDS)
    if kind == "svr" and seconds > _LONG:
        say(f"fold {fold}: svr of {shape[0]:,} essays takes about {seconds / 60:.0f} minutes; ridge takes seconds")
