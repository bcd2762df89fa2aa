"""The best evaluation of a pretraining: its weights on disk, and the end of a training that no longer betters it."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fb3.data.batches import collate, on_device, training_batches
from fb3.data.pretraining_texts import PretrainingTexts
from fb3.pretraining.pretraining_model import PretrainingModel, PretrainingTask
from fb3.runs.checkpoint import save_fold
from fb3.runs.save_folder import Tree
from fb3.system.devices import out_of_memory
from fb3.system.file_names import fold_folder
from fb3.targets.metrics import Score
from fb3.training.processes import gathered
from fb3.training.session import Session, versions
from fb3.training.tricks.trick import Step

Sums = dict[str, tuple[float, float]]  # a sum and a count, for each measure


class NoBetter(Exception):
    """The last evaluations were no better than the best one, so that the training ends."""


class BestEncoder:
    """Evaluates the model on held-out windows and keeps its best weights.

    Each evaluation hides the same tokens and draws the same dropout masks, so that evaluations differ by the weights
    alone; the training's own random numbers go on as if there had been none.
    """

    def __init__(self, session: Session, task: PretrainingTask, windows: PretrainingTexts, seed: int) -> None:
        self.session, self.task, self.windows, self.seed = session, task, windows, seed
        self.folder: Path = fold_folder(session.out, 0)
        self.size = session.recipe.train.batch_size
        self.start = time.monotonic()
        self.best_score: Score | None = None
        self.first: dict[str, float] = {}  # measures before the first step
        self.since = 0  # evaluations since the best one

    def evaluate(self, step: Step) -> None:
        """Evaluates the weights as they stand, and keeps them if they are the best so far.

        Raises:
            NoBetter: the recipe's patience is at its end.
        """
        session, patience = self.session, self.session.recipe.pretrain.patience
        measures = self.measure(step.scorer)
        self.first = self.first or measures
        score = step.score = Score(measures["loss"], {k: v for k, v in measures.items() if k != "loss"}, True)
        best = score.better_than(self.best_score)
        epoch, elapsed = step.epoch + bool(step.number), time.monotonic() - self.start
        session.log.evaluation(0, epoch, step.number, "held-out loss", score, best, elapsed, "pretraining")
        self.since = 0 if best else self.since + 1
        if best:
            self.best_score = score
        if best and session.accelerator.is_main_process:
            info = {"fold": 0, "score": score.overall, "columns": score.columns, "step": step.number}
            save_fold(self.folder, step.scorer, {**info, "seed": self.seed, "versions": versions()})
        if patience and self.since >= patience:
            raise NoBetter

    def measure(self, model: PretrainingModel) -> dict[str, float]:
        """The mean loss of the held-out windows, weighted as in training, and each objective's measures."""
        while True:
            try:
                sums = self._sums(model)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.size == 1 or self.session.accelerator.num_processes > 1:
                    raise
            self.size = (self.size + 1) // 2  # here the attempt's memory is free
        sums = _added(gathered(self.session.accelerator, sums))
        return _named({name: total / count for name, (total, count) in sums.items() if count})

    @torch.no_grad()
    def _sums(self, model: PretrainingModel) -> Sums:
        accelerator, windows = self.session.accelerator, self.windows
        windows = windows.seeded(self.seed, 17)
        mine = np.arange(len(windows.rows))[accelerator.process_index :: accelerator.num_processes]
        was_training, parts = model.training, []
        model.eval()
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), accelerator.autocast():
                torch.manual_seed(self.seed)
                for rows in training_batches(windows.total_lengths, mine, self.size, self.seed, 0) if len(mine) else ():
                    batch = on_device(collate(windows, rows, np.zeros((len(windows.rows), 0))), accelerator.device)
                    parts.append(self._of_batch(model, batch))
        finally:
            model.train(was_training)
        return _added(parts)

    def _of_batch(self, model: PretrainingModel, batch: Mapping[str, torch.Tensor]) -> Sums:
        learned, size = model(batch), len(batch["group"])
        total = sum(self.task.weights[kind] * float(each.loss) for kind, each in learned.items())
        measures = {name: pair for each in learned.values() for name, pair in each.measures.items()}
        return {"loss": (total * size, size)} | {name: (float(a), float(b)) for name, (a, b) in measures.items()}

    def state_dict(self) -> Tree:
        """Everything it remembers beside the weights, which are on disk."""
        return {
            "score": self.best_score and self.best_score._asdict(),
            "first": self.first,
            "since": self.since,
            "size": self.size,
            "elapsed": time.monotonic() - self.start,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Restores what `state_dict` returned."""
        self.best_score = state["score"] and Score(**state["score"])
        self.first, self.since, self.size = state["first"], state["since"], state["size"]
        self.start = time.monotonic() - state["elapsed"]


def _added(parts: list[Sums]) -> Sums:
    totals, counts = Counter(), Counter()
    for part in parts:
        for name, (total, count) in part.items():
            totals[name] += total
            counts[name] += count
    return {name: (totals[name], counts[name]) for name in totals}


def _named(means: dict[str, float]) -> dict[str, float]:
    """Means in the form in which they are known: perplexity is a loss's exponential, uniformity a mean's logarithm."""
    if "mlm" in means:
        means["perplexity"] = math.exp(min(means["mlm"], 700.0))
    if "uniformity" in means:
        means["uniformity"] = math.log(max(means["uniformity"], 1e-300))
    return means
