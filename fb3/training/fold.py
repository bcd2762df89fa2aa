"""One fold: model, optimizer and loop put together; the best evaluation kept."""

import time

import numpy as np
import torch
from accelerate.utils import gather_object

from fb3.data.augmentation.draw import augmented
from fb3.data.batches import collate, steps_per_epoch
from fb3.data.folds import FoldSplit
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.prediction.inference_loop import predict
from fb3.prediction.predictions import Predictions
from fb3.runs.checkpoint import check_reload, save_fold
from fb3.runs.fold_json import ids_hash
from fb3.system.kaggle import seed_everything
from fb3.targets.metrics import Score
from fb3.tasks.base import Task
from fb3.tasks.build import build_task
from fb3.tasks.uda import Consistent
from fb3.training.loop import Loop
from fb3.training.memory import Parts
from fb3.training.optimizer import build_optimizer, build_schedule
from fb3.training.saves import Saves
from fb3.training.session import Evaluation, Session, versions, with_local_backbone
from fb3.training.soup import Soup
from fb3.training.state import Tree, score_of, score_state
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
    shortest = split.train_rows[session.encoded.costs[split.train_rows].argmin()]
    check_reload(scorer, recipe, session.out / "encoder", collate(session.encoded, np.array([shortest])))
    scorer.to(accelerator.device)
    scaled = session.precision == "fp16"
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=scaled, of_task=task.parameters())
    per_epoch = steps_per_epoch(len(split.train_rows), recipe.train.batch_size, recipe.train.accumulation)
    steps = per_epoch * recipe.train.epochs
    tricks = build_tricks(recipe, scorer, steps)
    keeper = _Keeper(session, split, task, seed)
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
    return augmented(session.encoded, session.texts, session.tokenizer, data, data.augment, own)


def _training_task(session: Session, task: Task, seed: int) -> Task:
    """The task with what only a training has around it."""
    data, settings, essays = session.recipe.data, session.recipe.task.uda, session.unlabelled
    if not settings:
        return task
    own = _own_seed(session, seed + _APART)
    changed = augmented(essays.encoded, essays.texts, session.tokenizer, data, settings.augment, own)
    at, of = session.accelerator.process_index, session.accelerator.num_processes
    return Consistent(task, settings, essays.encoded, changed, seed + _APART, at, of)


class _Keeper:
    """Evaluates a fold and keeps its best checkpoint and predictions."""

    def __init__(self, session: Session, split: FoldSplit, task: Task, seed: int) -> None:
        self.session, self.split, self.task, self.seed = session, split, task, seed
        self.name = f"fold {split.fold} validation"
        self.start = time.monotonic()
        self.best: Predictions | None = None
        self.best_score: Score | None = None
        self.soup = Soup(session.recipe.train.soup) if session.recipe.train.soup else None

    def evaluate(self, step: Step) -> None:
        """Scores the weights as they stand, and keeps them where they are the best so far."""
        score = self._evaluate(step)
        if self.soup:
            self.soup.add(score, step.scorer)
        if self.session.recipe.train.keep == "all" and self.session.accelerator.is_main_process:
            folder = self.session.out / f"fold{self.split.fold}" / f"step{step.number}"
            save_fold(folder, step.scorer, self._info(step, score))

    def state(self) -> Tree:
        """What is kept beside the checkpoint."""
        return {
            "score": score_state(self.best_score),
            "values": None if self.best is None else torch.from_numpy(self.best.values),
            "elapsed": time.monotonic() - self.start,
            "soup": self.soup.state() if self.soup else None,
        }

    def load(self, state: Tree) -> None:
        """Puts back what `state` gave."""
        self.best_score = score_of(state["score"])
        self.start = time.monotonic() - state["elapsed"]
        if state["values"] is not None:
            ids = self.session.essays[self.session.recipe.data.id_column].to_numpy()[self.split.valid_rows]
            self.best = Predictions(ids, state["values"].numpy(), self.task.columns, self.name)
        if self.soup:
            self.soup.load(state["soup"])

    def cook(self, step: Step) -> None:
        """Tries averages of the best evaluations, at the end."""
        if self.soup:
            self.soup.cook(step.scorer, lambda: self._evaluate(step))

    def _evaluate(self, step: Step) -> Score:
        session, split = self.session, self.split
        predictions = self._predict(step)
        truth = session.targets[split.valid_rows]
        score = step.score = self.task.score(truth, predictions.values)
        best = score.better_than(self.best_score)
        epoch = step.epoch + 1
        session.log.evaluation(split.fold, epoch, step.number, score, best, time.monotonic() - self.start)
        self._warn_of_collapse(predictions, truth)
        if best:
            self.best, self.best_score = predictions, score
        if best and session.accelerator.is_main_process:
            save_fold(session.out / f"fold{split.fold}", step.scorer, self._info(step, score))
        if session.on_evaluation:
            session.on_evaluation(Evaluation(split.fold, step.progress, score))
        return score

    def _predict(self, step: Step) -> Predictions:
        """All validation essays, shared out among the processes."""
        session, accelerator = self.session, self.session.accelerator
        rows = self.split.valid_rows
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        part = predict(
            step.scorer,
            self.task,
            session.encoded,
            session.essays[session.recipe.data.id_column].to_numpy(),
            rows=mine,
            precision=session.precision,
            token_budget=session.recipe.predict.token_budget,
            name=self.name,
            shown=accelerator.is_main_process and accelerator.num_processes == 1,
        )
        if accelerator.num_processes == 1:
            return part
        parts = gather_object([(mine, part)])
        order = np.argsort(np.concatenate([part_rows for part_rows, _ in parts]))
        return Predictions(
            np.concatenate([p.ids for _, p in parts])[order],
            np.concatenate([p.values for _, p in parts])[order],
            part.columns,
            part.name,
        )

    def _warn_of_collapse(self, predictions: Predictions, truth: np.ndarray) -> None:
        if len(truth) > 1 and (predictions.values.std(0) < 0.05 * truth.std(0)).all():
            self.session.log.event(
                "warning",
                f"warning: fold {self.split.fold} predicts nearly the same for every essay; it has learned the "
                "mean or collapsed: try a lower optimizer.encoder_rate, or more epochs",
                fold=self.split.fold,
                reason="predictions without spread",
            )

    def _info(self, step: Step, score: Score) -> dict:
        session, split = self.session, self.split
        ids = session.essays[session.recipe.data.id_column].to_numpy()[split.valid_rows]
        means = session.targets[split.train_rows].mean(0).tolist()
        return {
            "fold": split.fold,
            "score": score.overall,
            "columns": score.columns,
            "epoch": step.epoch + 1,
            "step": step.number,
            "seed": self.seed,
            "target_means": dict(zip(self.task.columns, means, strict=True)),
            "valid_ids_sha256": ids_hash(ids),
            "versions": versions(),
        }
