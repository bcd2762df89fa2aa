"""One fold: model, optimizer and loop put together; the best evaluation kept."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fb3.data.augmentation.augmented_essays import augment_essays
from fb3.data.batches import Batch, collate
from fb3.data.folds import FoldSplit
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.models.scorer import ModelOutput, Scorer
from fb3.prediction.predictions import Predictions
from fb3.recipe.task import LabelsSettings
from fb3.runs.checkpoint import check_reload
from fb3.system.file_names import ENCODER
from fb3.system.seeds import seed_everything
from fb3.tasks.base import Task
from fb3.tasks.build import build_task
from fb3.tasks.momentum_distillation import MomentumDistillation
from fb3.tasks.uda import UDA
from fb3.training.best_checkpoint import BestCheckpoint
from fb3.training.encoder_folder import with_local_backbone
from fb3.training.loop import Hooks, Learner, Loop, TrainingData
from fb3.training.optimizer import build_optimizer
from fb3.training.saves import Saves
from fb3.training.schedule import build_schedule
from fb3.training.session import Session
from fb3.training.training_data import training_data
from fb3.training.tricks.averaging import EMA
from fb3.training.tricks.build import build_tricks
from fb3.training.tricks.trick import Step, Trick

# Seeds are below 2**31, so these offsets keep the draws of one fold apart from those of any other.
_UNLABELLED = 2**31  # for essays without scores
_NEXT_PROCESS = 2**32  # from one process's seed to the next one's; the first process has the recipe's


def run_fold(session: Session, split: FoldSplit) -> Predictions:
    """Trains one fold into the run folder, from its last save on where there is one.

    Returns:
        The out-of-fold predictions of the best evaluation, not clipped.

    Raises:
        Stopped: it was asked to stop; the fold is saved.
        Fb3Error: the loss became NaN, or no evaluation gave a score.
    """
    recipe, accelerator = session.recipe, session.accelerator
    seed = recipe.train.seed + split.fold
    seed_everything(seed)
    scorer, task = _build_model(session, split)
    data = training_data(session, split, _training_essays(session, seed), seed)
    learner, steps = _build_learner(session, scorer, task, data, seed), data.steps
    checkpoint = BestCheckpoint(session, split, task, seed)
    saves = Saves(session, split, checkpoint, steps)
    loop = Loop(accelerator, recipe, learner, data, Hooks(checkpoint.evaluate, saves.after_step), session.log)
    if accelerator.process_index:  # the model is built, the same everywhere; from here on each draws its own masks
        torch.manual_seed(_process_seed(session, seed))
    done = saves.restore(loop)
    device = f"{accelerator.device.type} {session.precision}"
    session.log.fold(split.fold, len(split.train_rows), len(split.valid_rows), steps, device, done)
    if not done:
        _warn_of_unseen_labels(session, split)
    loop.run()
    checkpoint.try_averages(Step(scorer, {}, len(data.epochs) - 1, steps, 1.0))
    accelerator.free_memory()
    if checkpoint.best is None:
        raise Fb3Error(f"fold {split.fold}: no evaluation gave a score; nothing was kept. Try train.precision=fp32")
    return checkpoint.best


def _warn_of_unseen_labels(session: Session, split: FoldSplit) -> None:
    """Names the labels that validation essays have and training essays lack."""
    if not isinstance(session.recipe.task, LabelsSettings):
        return
    trained, validated = (session.targets[rows].any(0) for rows in (split.train_rows, split.valid_rows))
    if unseen := [session.target.columns[place] for place in np.flatnonzero(validated & ~trained)]:
        names = ", ".join(map(repr, unseen[:8])) + (", ..." if unseen[8:] else "")
        session.log.event(
            "warning",
            f"warning: fold {split.fold} validates {len(unseen)} labels that no essay of its training has, and cannot "
            f"learn them: {names}",
            fold=split.fold,
            reason="labels without training essays",
            labels=unseen,
        )


def _build_model(session: Session, split: FoldSplit) -> tuple[Scorer, Task]:
    """A fold's model and its task, on the device.

    Both are the fold's own: pooling, statistics and the head's bias are fitted to its training essays alone, so that
    nothing of the validation essays leaks into the model.
    """
    recipe, essays, device = session.recipe, session.encoded, session.accelerator.device
    scorer = build_scorer(with_local_backbone(recipe, session.out), session.out / ENCODER, init="pretrained")
    for tower, encoded in zip(scorer.towers().values(), (essays, essays.second), strict=False):
        tower.pooling.fit(encoded.rows[row] for row in split.train_rows)
    if essays.frames:
        scorer.frames.fit_items(essays.frames, split.train_rows)
    if essays.statistics is not None:
        scorer.beside.fit(essays.statistics[split.train_rows])
    task, targets = build_task(recipe), torch.from_numpy(session.targets[split.train_rows])
    task.fit(targets)
    scorer.head.start_at(task.first_bias(targets))
    shortest = split.train_rows[essays.total_lengths[split.train_rows].argmin()]
    check_reload(scorer, recipe, session.out / ENCODER, collate(essays, np.array([shortest])))
    return scorer.to(device), task.to(device)


def _build_learner(session: Session, scorer: Scorer, task: Task, data: TrainingData, seed: int) -> Learner:
    recipe, scaled = session.recipe, session.precision == "fp16"
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=scaled, of_task=task.parameters())
    tricks = build_tricks(recipe, scorer, data.steps)
    first, later_rate = 0, 1.0
    if recipe.pseudo and (alone := recipe.pseudo.first_epochs()):
        first, later_rate = data.ends[alone - 1], recipe.pseudo.later_rate()
    schedule = build_schedule(optimizer, recipe.schedule, data.steps, first, later_rate)
    task = _taught(session, _training_task(session, task, seed), tricks)
    return Learner(scorer, task, optimizer, schedule, tricks)


def _taught(session: Session, task: Task, tricks: Sequence[Trick]) -> Task:
    """The task, taught by the weights' moving average where the recipe wants that."""
    average = next((trick for trick in tricks if isinstance(trick, EMA) and trick.settings.teach), None)
    if not average:
        return task

    def teacher(batch: Batch) -> ModelOutput | None:
        if not average.waited:
            return None
        with session.accelerator.autocast():
            return average.average.eval()(batch)

    return MomentumDistillation(task, teacher, average.settings.teach, 1 / session.recipe.train.epochs)


def _process_seed(session: Session, seed: int) -> int:
    """Seed of this process's own draws: dropout masks and changes of essays."""
    return seed + _NEXT_PROCESS * session.accelerator.process_index


def _training_essays(session: Session, seed: int) -> Encoded:
    """The essays as training draws them: augmented where the recipe wants that."""
    data, own, encoded = session.recipe.data, _process_seed(session, seed), session.encoded
    if encoded.frames:
        encoded = replace(encoded, frames=replace(encoded.frames, rng=np.random.default_rng(own)))
    if not data.augment:
        return encoded
    return augment_essays(encoded, session.texts, session.tokenizer, data, data.augment, own)


def _training_task(session: Session, task: Task, seed: int) -> Task:
    """The task, wrapped in UDA where the recipe has essays without scores."""
    data, settings, essays = session.recipe.data, session.recipe.task.uda, session.unlabelled
    if not settings:
        return task
    own = _process_seed(session, seed + _UNLABELLED)
    changed = augment_essays(essays.encoded, essays.texts, session.tokenizer, data, settings.augment, own)
    process, processes = session.accelerator.process_index, session.accelerator.num_processes
    return UDA(task, settings, essays.encoded, changed, seed + _UNLABELLED, process, processes)
