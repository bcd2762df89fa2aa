"""The essays that a fold draws in each epoch, their targets and weights: its own, and pseudo-labelled ones.

Pseudo-labelled essays stand behind the session's N labelled ones, so that row N + p is the p-th of them.
"""

from functools import partial

import numpy as np

from fb3.data.batches import Sampling, rarest_labels, steps_per_epoch
from fb3.data.folds import FoldSplit
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.training.loop import TrainingData
from fb3.training.session import Session

_POWERS = {"balanced": 0.0, "sqrt": 0.5}  # a class comes in proportion to its count to this power
_LEAST_ERROR = 0.5  # share of the median: an error of 0 would have an infinite weight, this one four times the median's


def training_data(session: Session, split: FoldSplit, encoded: Encoded, seed: int) -> TrainingData:
    """Everything that a fold draws its batches from.

    Args:
        session: the run's.
        split: the fold's.
        encoded: the essays as training draws them, N labelled and then P pseudo-labelled ones.
        seed: decides the order of the batches.
    """
    settings = session.recipe.train
    epochs, targets, weights = [split.train_rows] * settings.epochs, session.targets, _weights(session, split)
    if session.pseudo:
        epochs, targets, weights = _with_pseudo_labels(session, split, weights)
    sizes = [steps_per_epoch(len(rows), settings.batch_size, settings.accumulation) for rows in epochs]
    ends = np.cumsum(sizes).tolist()
    return TrainingData(split.fold, epochs, encoded, targets, ends, seed, _sampling(session, split, targets), weights)


def _with_pseudo_labels(
    session: Session, split: FoldSplit, true_weights: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray | None]:
    """Rows of each epoch, targets and weights of all N + P essays.

    Targets are (N + P, K), or (N + P, 2 K) where the second half is the teacher's; a pseudo-labelled essay has the
    teacher's prediction in both halves.
    """
    settings, count, pseudo = session.recipe.pseudo, session.recipe.train.epochs, session.pseudo
    true, labelled, size = split.train_rows, len(session.targets), len(session.encoded.rows)
    rows, labels = pseudo.of_fold(split.fold)
    rows = labelled + rows
    targets = np.full((size, session.targets.shape[1]), np.nan, np.float32)
    targets[:labelled], targets[rows] = session.targets, labels
    both = np.concatenate([true, rows])
    alone = settings.first_epochs()
    epochs = [rows] * alone + [true if alone else both] * count
    if settings.use == "distil":
        targets = np.hstack([targets, np.concatenate([pseudo.teacher, targets[labelled:]])])
    weights = np.full(size, settings.essay_weight())
    weights[:labelled] = 1.0 if true_weights is None else true_weights
    if not alone:
        weights /= weights[both].mean()
    session.log.event(
        "pseudo",
        f"fold {split.fold}: {len(rows)} pseudo-labelled essays ({settings.use})",
        fold=split.fold,
        essays=len(rows),
        use=settings.use,
    )
    return epochs, targets, None if (weights == 1.0).all() else weights.astype(np.float32)


def _sampling(session: Session, split: FoldSplit, targets: np.ndarray) -> Sampling | None:
    """The way that training draws essays, where the recipe wants another than each once an epoch.

    A pseudo-labelled essay counts for its likeliest class, or for its labels above 0.5 where it may have several.
    """
    wanted, labels = session.recipe.train.sampling, targets[:, : session.targets.shape[1]]
    if not wanted:
        return None
    labels = labels == labels.max(1, keepdims=True) if session.target.exclusive else labels
    return Sampling(rarest_labels(labels, split.train_rows), partial(chances, wanted))


def chances(wanted: str | dict[int, float], counts: np.ndarray) -> np.ndarray:
    """The chance of each essay of a class, up to a factor, from the classes' counts (C,); see train.sampling."""
    if isinstance(wanted, str):
        return counts ** (_POWERS[wanted] - 1.0)
    bounds = sorted(wanted)
    return np.array([*(wanted[bound] for bound in bounds), 1.0])[np.searchsorted(bounds, counts, side="right")]


def _weights(session: Session, split: FoldSplit) -> np.ndarray | None:
    """The essays' weights, (N,) float32, with a mean of 1 over the training essays; None where all weigh alike."""
    data = session.recipe.data
    if not data.weight_column:
        return None
    weights = session.essays[data.weight_column].to_numpy(np.float64)
    if data.weight_form == "standard_error":
        weights = 1.0 / np.maximum(weights, _LEAST_ERROR * np.median(weights[weights > 0])) ** 2
    mean = weights[split.train_rows].mean()
    if not mean:
        raise Fb3Error(f"data.weight_column={data.weight_column}: all training essays of fold {split.fold} have 0")
    return (weights / mean).astype(np.float32)
