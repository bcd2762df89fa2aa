"""A session: everything that the folds of a run share, such as device, encoder folder and tokens."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from accelerate import Accelerator
from tokenizers import Tokenizer

from fb3.data.pseudo_essays import PseudoEssays, with_pseudo_essays
from fb3.data.texts import input_texts
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import Encoded, encode_essays
from fb3.data.unknown_tokens import tell_unknown
from fb3.models.backbone_files import KEY, SECOND_KEY
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.recipe import Recipe
from fb3.system.devices import Precision
from fb3.system.file_names import ENCODER, SECOND
from fb3.targets.metrics import Score
from fb3.targets.target import Target
from fb3.tasks.base import Task
from fb3.tasks.build import build_task
from fb3.training.encoder_folder import open_encoder
from fb3.training.run_log import RunLog
from fb3.training.stop_request import StopRequest
from fb3.version import __version__

_VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "pandas")


class Evaluation(NamedTuple):
    """fold: its number. share: share of the fold's training that is done, 0-1. score: the score of the weights now."""

    fold: int
    share: float
    score: Score


OnEvaluation = Callable[[Evaluation], None]


@dataclass(frozen=True)
class Unlabelled:
    """Essays without scores: their texts as the tokenizer got them, and their tokens."""

    texts: list[str]
    encoded: Encoded


@dataclass(frozen=True)
class Session:
    """Everything that all folds of a run share.

    out: the run folder. targets: (N, K), the N essays'. texts, encoded: of these essays, and behind them of the P
    pseudo-labelled ones; an estimator's `encoded` are the inputs of its features, and it has no texts and no tokenizer.
    digests: hashes of the training files, by their keys in environment.json; none: folds are not saved while they
    train. stop: when to stop early.
    """

    recipe: Recipe
    essays: pd.DataFrame
    out: Path
    accelerator: Accelerator
    precision: Precision
    task: Task
    log: RunLog
    encoded: Encoded | FeatureInputs
    targets: np.ndarray
    texts: Sequence[str] = ()
    tokenizer: Tokenizer | None = None
    unlabelled: Unlabelled | None = None
    pseudo: PseudoEssays | None = None
    on_evaluation: OnEvaluation | None = None
    digests: dict[str, str] | None = None
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def target(self) -> Target:
        """The target that the task learns."""
        return self.task.target

    @property
    def ids(self) -> np.ndarray:
        """The essays' ids, (N,)."""
        return self.essays[self.recipe.data.id_column].to_numpy()


def open_session(
    recipe: Recipe,
    essays: pd.DataFrame,
    out: Path,
    accelerator: Accelerator,
    precision: Precision,
    unlabelled: pd.DataFrame | None = None,
    pseudo: PseudoEssays | None = None,
) -> Session:
    """Writes the encoder folder, opens the trackers and tokenises all essays, also the ones without scores.

    Raises:
        Fb3Error: the encoder cannot be used, or not as the recipe wants it.
    """
    accelerator, precision = open_encoder(recipe, essays, out, accelerator, precision)

    def tokenised(table: pd.DataFrame) -> tuple[list[str], Encoded]:
        return input_texts(table, recipe.data), encode_essays(table, out / ENCODER, recipe.data)

    texts, encoded = tokenised(with_pseudo_essays(essays, pseudo))
    if accelerator.is_main_process:
        tell_unknown(texts, encoded, out / ENCODER, f"{KEY}={recipe.model.backbone}")
        if encoded.second:
            tell_unknown(texts, encoded.second, out / ENCODER / SECOND, f"{SECOND_KEY}={recipe.model.stitch.backbone}")
    task = build_task(recipe)
    return Session(
        recipe=recipe,
        essays=essays,
        out=out,
        accelerator=accelerator,
        precision=precision,
        task=task,
        tokenizer=load_tokenizer(out / ENCODER)[0],
        texts=texts,
        encoded=encoded,
        targets=task.target.truths(essays),
        unlabelled=None if unlabelled is None else Unlabelled(*tokenised(unlabelled)),
        pseudo=pseudo,
        log=open_log(out, accelerator),
    )


def open_log(out: Path, accelerator: Accelerator) -> RunLog:
    """The log of a run folder."""
    return RunLog(out / "log.jsonl", accelerator.is_main_process, lambda v, step: accelerator.log(v, step=step))


def versions() -> dict[str, str]:
    """Versions of python, fb3 and the libraries that decide a result."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), "fb3": __version__, **found}


def close_session(session: Session) -> None:
    """Finishes the trackers. The process group stays open: another run in this process may use it."""
    session.accelerator.wait_for_everyone()
    for tracker in session.accelerator.trackers:
        tracker.finish()
