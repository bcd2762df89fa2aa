"""One fold: model, optimizer and loop put together; the best evaluation kept."""

import numpy as np
import torch

from fb3.data.augmentation.augmented_essays import augment_essays
from fb3.data.batches import collate, steps_per_epoch
from fb3.data.folds import FoldSplit
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.prediction.predictions import Predictions
from fb3.runs.checkpoint import check_reload
from fb3.system.seeds import seed_everything
from fb3.tasks.base import Task
from fb3.tasks.build import build_task
from fb3.tasks.uda import UDA
from fb3.training.best_checkpoint import BestCheckpoint
from fb3.training.loop import Loop
from fb3.training.memory import Parts
from fb3.training.optimizer import build_optimizer
from fb3.training.saves import Saves
from fb3.training.schedule import build_schedule
from fb3.training.session import Session, with_local_backbone
from fb3.training.tricks.build import build_tricks
from fb3.training.tricks.trick import Step

_APART = 2**31  # above the recipe's seeds: essays without scores have draws of their own
_OTHER_PROCESS = 2**32  # from one process's seed to the next one's; the first has the recipe's


def run_fold(session: Session, split: FoldSplit) -> Predictions:
    """Trains one fold into the run folder, from its last save on where there is one.

    Returns:
        The out-of-fold predictions of the best evaluation, not clipped.

    Raises:
        Stopped: it was asked for; the fold is saved.
        Fb3Error: the loss became NaN, or no evaluation gave a score.
    """
    recipe, accelerator = session.recipe, session.accelerator
    seed = recipe.train.seed + split.fold
    seed_everything(seed)
    scorer = build_scorer(with_local_backbone(recipe, session.out), session.out / "encoder", init="pretrained")
    for tower, encoded in zip(scorer.towers().values(), (session.encoded, session.encoded.second), strict=False):
        tower.pooling.fit(encoded.rows[row] for row in split.train_rows)
    if session.encoded.statistics is not None:
        scorer.beside.fit(session.encoded.statistics[split.train_rows])
    task = build_task(recipe).to(accelerator.device)  # the fold's own: it may learn
    scorer.head.start_at(task.first_bias(torch.from_numpy(session.targets[split.train_rows])))
    shortest = split.train_rows[session.encoded.total_lengths[split.train_rows].argmin()]
    check_reload(scorer, recipe, session.out / "encoder", collate(session.encoded, np.array([shortest])))
    scorer.to(accelerator.device)
    scaled = session.precision == "fp16"
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=scaled, of_task=task.parameters())
    per_epoch = steps_per_epoch(len(split.train_rows), recipe.train.batch_size, recipe.train.accumulation)
    steps = per_epoch * recipe.train.epochs
    tricks = build_tricks(recipe, scorer, steps)
    keeper = BestCheckpoint(session, split, task, seed)
    saves = Saves(session, split, keeper, steps)
    loop = Loop(
        accelerator,
        scorer,
        optimizer,
        build_schedule(optimizer, recipe.schedule, steps),
        task=_training_task(session, task, seed),
        tricks=tricks,
        encoded=_training_essays(session, seed),
        targets=session.targets,
        settings=recipe.train,
        optimizer_settings=recipe.optimizer,
        evaluate=keeper.evaluate,
        parts=Parts(
            split.fold,
            scorer,
            recipe.model.gradient_checkpointing,
            not recipe.task.of_batches(),
            accelerator.num_processes,
            session.log,
        ),
        log=session.log,
        pause=saves.pause,
    )
    if accelerator.process_index:  # the model is built, the same everywhere; from here on each draws its own masks
        torch.manual_seed(_own_seed(session, seed))
    done = saves.restore(loop)
    device = f"{accelerator.device.type} {session.precision}"
    session.log.fold(split.fold, len(split.train_rows), len(split.valid_rows), steps, device, done)
    loop.run(split.fold, split.train_rows, steps, seed)
    keeper.cook(Step(scorer, {}, recipe.train.epochs - 1, steps, 1.0))
    accelerator.free_memory()
    if keeper.best is None:
        raise Fb3Error(f"fold {split.fold}: no evaluation gave a score; nothing was kept. Try train.precision=fp32")
    return keeper.best


def _own_seed(session: Session, seed: int) -> int:
    """Seed for this process's own share of a batch: dropout's masks, changes of essays."""
    return seed + _OTHER_PROCESS * session.accelerator.process_index


def _training_essays(session: Session, seed: int) -> Encoded:
    data = session.recipe.data
    if not data.augment:
        return session.encoded
    own = _own_seed(session, seed)
    return augment_essays(session.encoded, session.texts, session.tokenizer, data, data.augment, own)


def _training_task(session: Session, task: Task, seed: int) -> Task:
    """The task with what only a training has around it."""
    data, settings, essays = session.recipe.data, session.recipe.task.uda, session.unlabelled
    if not settings:
        return task
    own = _own_seed(session, seed + _APART)
    changed = augment_essays(essays.encoded, essays.texts, session.tokenizer, data, settings.augment, own)
    at, of = session.accelerator.process_index, session.accelerator.num_processes
    return UDA(task, settings, essays.encoded, changed, seed + _APART, at, of)
