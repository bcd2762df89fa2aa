"""The best evaluation of a fold: its checkpoint on disk, its out-of-fold predictions in memory."""

import time
from typing import Any

import numpy as np
import torch

from fb3.data.folds import FoldSplit
from fb3.models.scorer import Scorer
from fb3.prediction.inference_loop import predict
from fb3.prediction.predictions import Predictions
from fb3.recipe.task import LabelsSettings
from fb3.runs.checkpoint import save_fold
from fb3.runs.fold_json import ids_hash
from fb3.runs.save_folder import Tree
from fb3.system.file_names import fold_folder
from fb3.targets.metrics import Score
from fb3.tasks.base import Task
from fb3.training.processes import gathered
from fb3.training.session import Evaluation, Session, versions
from fb3.training.soup import Soup
from fb3.training.tricks.trick import Step


class BestCheckpoint:
    """Evaluates a fold and keeps its best checkpoint and predictions; the task is without training's wrappers."""

    def __init__(self, session: Session, split: FoldSplit, task: Task, seed: int) -> None:
        self.session, self.split, self.task, self.seed = session, split, task, seed
        self.folder, self.name = fold_folder(session.out, split.fold), f"fold {split.fold} validation"
        self.start = time.monotonic()
        self.best: Predictions | None = None
        self.best_score: Score | None = None
        self.first_epoch = session.recipe.pseudo.first_epochs() if session.recipe.pseudo else 0
        self.soup = Soup(session.recipe.train.soup) if session.recipe.train.soup else None

    def evaluate(self, step: Step) -> None:
        """Scores the weights as they stand, and keeps them if they are the best so far."""
        score = self._evaluate(step)
        if step.epoch < self.first_epoch:
            return
        if self.soup:
            self.soup.add(score, step.scorer)
        if self.session.recipe.train.keep == "all" and self.session.accelerator.is_main_process:
            save_fold(self.folder / f"step{step.number}", step.scorer, self._info(step, score))

    def try_averages(self, step: Step) -> None:
        """Evaluates averages of the best evaluations' weights, at the end, where the recipe wants them."""
        if self.soup:
            self.soup.try_averages(step.scorer, lambda: self._evaluate(step))

    def state_dict(self) -> Tree:
        """Everything it remembers beside the checkpoint, which is on disk."""
        return {
            "score": self.best_score and self.best_score._asdict(),
            "values": None if self.best is None else torch.from_numpy(self.best.values),
            "elapsed": time.monotonic() - self.start,
            "soup": self.soup.state_dict() if self.soup else None,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Restores what `state_dict` returned."""
        self.best_score = state["score"] and Score(**state["score"])
        self.start = time.monotonic() - state["elapsed"]
        if state["values"] is not None:
            ids = self.session.ids[self.split.valid_rows]
            self.best = Predictions(ids, state["values"].numpy(), self.task.target.columns, self.name)
        if self.soup:
            self.soup.load_state_dict(state["soup"])

    def _evaluate(self, step: Step) -> Score:
        session, fold = self.session, self.split.fold
        predictions = _predict_validation(session, self.split, self.task, step.scorer, self.name)
        truth = session.targets[self.split.valid_rows]
        score = step.score = self.task.score(truth, predictions.values)
        counts = step.epoch >= self.first_epoch  # before it, the fold has not yet learned from true labels
        best = counts and score.better_than(self.best_score)
        elapsed = time.monotonic() - self.start
        title = session.target.metric.title
        session.log.evaluation(fold, step.epoch + 1, step.number, title, score, best, elapsed)
        _warn_of_collapse(session, fold, predictions.values, truth)
        if best:
            self.best, self.best_score = predictions, score
        if best and session.accelerator.is_main_process:
            save_fold(self.folder, step.scorer, self._info(step, score))
        if session.on_evaluation and counts:
            session.on_evaluation(Evaluation(fold, step.progress, score))
        return score

    def _info(self, step: Step, score: Score) -> dict[str, Any]:
        """The content of fold.json."""
        info = fold_info(self.session, self.split, score, self.seed)
        return {**info, "epoch": step.epoch + 1, "step": step.number}


def fold_info(session: Session, split: FoldSplit, score: Score, seed: int) -> dict[str, Any]:
    """The part of fold.json that folds of every kind hold."""
    means = session.targets[split.train_rows].mean(0).tolist()
    return {
        "fold": split.fold,
        "score": score.overall,
        "columns": score.columns,
        "seed": seed,
        "target_means": dict(zip(session.target.columns, means, strict=True)),
        "valid_ids_sha256": ids_hash(session.ids[split.valid_rows]),
        "versions": versions(),
    }


def _predict_validation(session: Session, split: FoldSplit, task: Task, scorer: Scorer, name: str) -> Predictions:
    """Predictions for all validation essays, not clipped; each process predicts its share of them."""
    accelerator, rows = session.accelerator, split.valid_rows
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    part = predict(
        scorer,
        task,
        session.encoded,
        session.ids,
        rows=mine,
        precision=session.precision,
        token_budget=session.recipe.predict.token_budget,
        name=name,
        shown=accelerator.is_main_process and accelerator.num_processes == 1,
    )
    if accelerator.num_processes == 1:
        return part
    parts = gathered(accelerator, (mine, part))
    order = np.argsort(np.concatenate([part_rows for part_rows, _ in parts]))
    return Predictions(
        np.concatenate([p.ids for _, p in parts])[order],
        np.concatenate([p.values for _, p in parts])[order],
        part.columns,
        part.name,
    )


def _warn_of_collapse(session: Session, fold: int, values: np.ndarray, truth: np.ndarray) -> None:
    """Warns where predictions, (N, K), hardly differ between essays although the truths do."""
    learned = "the labels' shares" if isinstance(session.recipe.task, LabelsSettings) else "the mean"
    if len(truth) > 1 and (values.std(0) < 0.05 * truth.std(0)).all():
        session.log.event(
            "warning",
            f"warning: fold {fold} predicts nearly the same for every essay; it has learned {learned} or collapsed: "
            "try a lower optimizer.encoder_rate, or more epochs",
            fold=fold,
            reason="predictions without spread",
        )
