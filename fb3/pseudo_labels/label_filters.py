"""Filters of labels, and hard labels in the place of soft ones."""

import numpy as np

from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.task import ClassesSettings
from fb3.targets.build import target_of
from fb3.targets.decisions import decide
from fb3.targets.target import Probabilities


def agreeing(predicted: np.ndarray, share: float) -> np.ndarray:
    """The share of P essays on which M models agree most, (P,) bool, from predictions (M, P, K).

    The measure is the standard deviation over models, as a mean over columns.
    """
    spread = predicted.std(0).mean(1)
    kept = np.zeros(len(spread), bool)
    kept[np.argsort(spread, kind="stable")[: max(1, round(share * len(spread)))]] = True
    return kept


def confident(labels: np.ndarray, least: float, exclusive: bool) -> np.ndarray:
    """Essays whose likeliest class has at least a probability, (P,) bool; of several labels, the answer to each."""
    sure = labels.max(1) if exclusive else np.maximum(labels, 1 - labels).min(1)
    return sure >= least


def check_filters(recipe: Recipe, models: int, hard: bool, agreement: float | None, confidence: float | None) -> None:
    """Refuses filters that a target or so many models cannot have; an Fb3Error names the option and the mend."""
    labels = isinstance(target_of(recipe), Probabilities)
    if agreement is not None and models < 2:
        raise Fb3Error(
            "--agreement: wants two models for each fold, which saw none of its validation essays; give an ensemble "
            "(`fb3 ensemble`) of several runs"
        )
    if confidence is not None and not labels:
        raise Fb3Error(f"--confidence: task.kind={recipe.task.kind} predicts numbers, not probabilities; leave it out")
    for option, value in (("--agreement", agreement), ("--confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise Fb3Error(f"{option} {value}: want a share between 0 and 1")
    if hard and not labels and not _steps(recipe):
        raise Fb3Error(
            f"--hard: task.kind={recipe.task.kind} has no steps to which its numbers could be rounded; leave it out, "
            "or train a teacher with task.kind=binned or decision.kind=rounding"
        )


def hardened(labels: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Soft labels (P, K) as truths would be: a class, yes or no, or the nearest value of the scale."""
    target = target_of(recipe)
    if target.exclusive:
        return np.eye(labels.shape[1])[labels.argmax(1)]
    if isinstance(target, Probabilities):
        return (labels >= 0.5).astype(np.float64)
    if isinstance(recipe.task, ClassesSettings):
        lowest, step = recipe.task.minimum, recipe.task.step
        return target.clip(lowest + step * np.rint((labels - lowest) / step))
    return decide(target.decision, labels)


def _steps(recipe: Recipe) -> bool:
    return isinstance(recipe.task, ClassesSettings) or target_of(recipe).decision.kind == "rounding"
