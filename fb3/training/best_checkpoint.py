"""The best evaluation of a fold, kept on disk."""

import time

import numpy as np
import torch
from accelerate.utils import gather_object

from fb3.data.folds import FoldSplit
from fb3.prediction.inference_loop import predict
from fb3.prediction.predictions import Predictions
from fb3.runs.checkpoint import save_fold
from fb3.runs.fold_json import ids_hash
from fb3.runs.save_folder import Tree
from fb3.targets.metrics import Score
from fb3.tasks.base import Task
from fb3.training.session import Evaluation, Session, versions
from fb3.training.soup import Soup
from fb3.training.state import score_of, score_state
from fb3.training.tricks.trick import Step


class BestCheckpoint:
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
