"""The loop: epochs, optimizer steps, evaluations. It names no trick, no task and no data set."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from fb3.data.batches import Batch, Sampling, collate, on_device, training_batches
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe import Recipe
from fb3.system.devices import out_of_memory
from fb3.system.progress import Advance, progress
from fb3.tasks.base import StepOutput, Task
from fb3.training.micro_batching import MicroBatching
from fb3.training.parameter_groups import trainable
from fb3.training.run_log import RunLog
from fb3.training.tricks.trick import Step, Trick


@dataclass(frozen=True)
class Learner:
    """The model of a fold and everything that moves its weights.

    scorer: the model, on its device, not yet prepared for several processes. task: gives the loss; on that device too.
    optimizer: for the parameters of both. schedule: the optimizer's, counted in optimizer steps. tricks: act around the
    step, outermost first. whole_batches: whether the loss is one of whole batches, whatever the recipe's task.
    """

    scorer: Scorer
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    tricks: Sequence[Trick] = ()
    whole_batches: bool = False


@dataclass(frozen=True)
class TrainingData:
    """The essays of a fold, and how long it trains on them.

    fold: its number. epochs: for each epoch the positions of its essays among the N encoded ones. targets: (N, K).
    ends: for each epoch the optimizer steps that are done at its end. seed: decides the order of the batches.
    sampling: see `training_batches`. weights: of each essay's loss, (N,); none: all alike. title: in messages, in the
    place of the fold's number.
    """

    fold: int
    epochs: Sequence[np.ndarray]
    encoded: Encoded
    targets: np.ndarray
    ends: Sequence[int]
    seed: int
    sampling: Sampling | None = None
    weights: np.ndarray | None = None
    title: str = ""

    @property
    def name(self) -> str:
        """The name of the training in messages."""
        return self.title or f"fold {self.fold}"

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.ends[-1]

    def place(self, number: int) -> tuple[int, int]:
        """The epoch of a step, and the steps that are done in it before."""
        epoch = bisect_right(self.ends, number)
        return epoch, number - (self.ends[epoch - 1] if epoch else 0)


@dataclass(frozen=True)
class Hooks:
    """evaluate: scores the weights as they stand. after_step: may save or stop, before an evaluation that is due."""

    evaluate: Callable[[Step], None]
    after_step: Callable[["Loop"], None]


class Loop:
    """Trains one fold. The recipe gives batch sizes and clipping, and says when to log and to evaluate."""

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, learner: Learner, data: TrainingData, hooks: Hooks, log: RunLog
    ) -> None:
        self.accelerator, self.settings, self.data, self.hooks = accelerator, recipe.train, data, hooks
        self.clip, self.unscale = recipe.optimizer.clip, recipe.optimizer.unscale
        self.scorer, self.task, self.tricks = learner.scorer, learner.task, learner.tricks
        self.schedule = learner.schedule
        self.step, self.window = Step(self.scorer, {}), _LossWindow(accelerator, log)
        self.micro_batching = MicroBatching(
            recipe, self.scorer, data.fold, data.name, accelerator.num_processes, log, learner.whole_batches
        )
        self.model, self.optimizer = accelerator.prepare(self.scorer, learner.optimizer)
        self.parameters = [*trainable(self.scorer), *self.task.parameters()]

    def run(self) -> None:
        """Takes the optimizer steps that `self.step` says are left.

        Raises:
            Fb3Error: the loss is no longer a number; says at which step.
        """
        step, data, size = self.step, self.data, self.settings.accumulation
        batches = None
        self.scorer.train()
        with progress(data.name, data.steps, self.accelerator.is_main_process, done=step.number) as advance:
            if step.number and self.due():  # a save is made before the evaluation of its step
                self.evaluate()
            while step.number < data.steps:
                step.epoch, place = data.place(step.number)
                if batches is None or place == 0:
                    lengths, count = data.encoded.total_lengths, self.settings.batch_size
                    rows = data.epochs[step.epoch]
                    batches = training_batches(lengths, rows, count, data.seed, step.epoch, data.sampling)
                self.optimizer_step(step, batches[place * size : (place + 1) * size])
                step.number += 1
                step.progress = step.number / data.steps
                due = self.due()
                if due or len(self.window.losses) >= self.settings.log_every_steps:
                    self.window.close(advance, step, data)
                else:
                    advance()  # steps may last seconds, and windows then minutes
                self.hooks.after_step(self)
                if due:
                    self.evaluate()

    def due(self) -> bool:
        """Whether an evaluation is due after the last step."""
        number, every = self.step.number, self.settings.evaluate_every_steps
        return number in self.data.ends or (every is not None and number % every == 0)

    def evaluate(self) -> None:
        """Evaluates the weights that the tricks put in place."""
        with ExitStack() as stack:
            for trick in self.tricks:
                stack.enter_context(trick.eval_weights(self.step))
            self.hooks.evaluate(self.step)

    def optimizer_step(self, step: Step, batches: list[np.ndarray]) -> None:
        """One step of the optimizer from one batch or, with accumulation, several; each essay weighs the same.

        Raises:
            Fb3Error: memory does not suffice, however small the micro-batches.
        """
        while (out := self.gradients(step, batches)) is None:
            self.micro_batching.relieve(step.number + 1, max(map(len, batches)))
        if self.unscale:
            self.accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.window.add(out, norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            for trick in self.tricks:
                trick.after_step(step)

    def gradients(self, step: Step, batches: list[np.ndarray]) -> StepOutput | None:
        """Computes the gradients of the batches' mean loss; returns that loss, or None where memory ran out."""
        essays = sum(len(rows) for rows in batches)
        try:
            outs = []
            for position, rows in enumerate(batches):
                micro_batches = self.micro_batches(rows, essays, step.progress)
                backward = partial(self.backward, step, micro_batches, syncs=position == len(batches) - 1)
                for trick in reversed(self.tricks):
                    backward = partial(trick.backward, step, backward)
                outs.append(backward())
            return _added(outs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Only here, outside the handler, is the attempt's memory free: the error's traceback held its tensors. Tricks
        # have restored the weights that they perturbed.
        self.optimizer.zero_grad()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def backward(self, step: Step, micro_batches: list[tuple[Batch, float]], syncs: bool) -> StepOutput:
        """Forward and backward of this process's share of a batch.

        Args:
            step: holds each micro-batch in turn as its `batch`.
            micro_batches: each with its weight.
            syncs: average the gradients over the processes at the end; once an optimizer step is enough.
        """
        outs = []
        for place, (step.batch, weight) in enumerate(micro_batches):
            last = syncs and place == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, logs = self.task.loss(self.model, step.batch)
                loss = loss * weight
                self.accelerator.backward(loss)
            logs = {name: value.detach().float() * weight for name, value in logs.items()}
            outs.append(StepOutput(loss.detach().float(), logs))
        return _added(outs)

    def micro_batches(self, rows: np.ndarray, essays: int, done: float) -> list[tuple[Batch, float]]:
        """This process's share of a batch in micro-batches, each with its weight among the step's `essays`.

        The batch says how much of the run is `done`, 0-1, for losses that change over it. Gradients are averaged over
        processes, so the weight is times their number. A process that gets no essay takes the first with weight 0: all
        must take part, or the others wait for its gradients forever.
        """
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        out = []
        for part in np.array_split(mine, min(self.micro_batching.count, len(mine))) if len(mine) else [mine]:
            drawn = part if len(part) else rows[:1]
            batch = collate(self.data.encoded, drawn, self.data.targets)
            batch["progress"] = torch.tensor(done)
            if self.data.weights is not None:
                batch["weight"] = torch.from_numpy(self.data.weights[drawn])
            weight = len(part) * self.accelerator.num_processes / essays
            out.append((on_device(batch, self.accelerator.device), weight))
        return out


def _added(outs: Sequence[StepOutput]) -> StepOutput:
    """The sum of losses that are weighted already, and the sums of their terms."""
    logs = {name: torch.stack([out.logs[name] for out in outs]).sum() for name in outs[0].logs}
    return StepOutput(torch.stack([out.loss for out in outs]).sum(), logs)


class _LossWindow:
    """Losses, their terms and gradient norms of the last few steps.

    They stay on the device until the window closes and are fetched together then: each fetch makes the CPU wait for the
    GPU, and the GPU afterwards for the CPU.
    """

    def __init__(self, accelerator: Accelerator, log: RunLog) -> None:
        self.accelerator, self.log = accelerator, log
        self.start = time.monotonic()
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.terms: dict[str, list[Tensor]] = {}
        self.rates: dict[str, float] = {}
        self.total, self.count = 0.0, 0

    def add(self, out: StepOutput, norm: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Adds a step, before the schedule moves on: the rates logged are the ones that move the weights."""
        self.losses.append(out.loss)
        self.norms.append(norm.detach().float())
        for name, value in out.logs.items():
            self.terms.setdefault(name, []).append(value)
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """The steps that are not logged yet, and the sums and times that later log lines need."""
        return {
            "losses": torch.stack(self.losses) if self.losses else None,
            "norms": torch.stack(self.norms) if self.norms else None,
            "terms": {name: torch.stack(values) for name, values in self.terms.items()},
            "total": self.total,
            "count": self.count,
            "elapsed": time.monotonic() - self.start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.losses, self.norms = self._unstacked(state["losses"]), self._unstacked(state["norms"])
        terms = state.get("terms", {})  # earlier versions did not save them
        self.terms = {name: self._unstacked(values) for name, values in terms.items()}
        self.total, self.count = state["total"], state["count"]
        self.start = time.monotonic() - state["elapsed"]

    def _unstacked(self, values: Tensor | None) -> list[Tensor]:
        return [] if values is None else list(values.to(self.accelerator.device).unbind())

    def close(self, advance: Advance, step: Step, data: TrainingData) -> None:
        """Logs the window and starts the next; an Fb3Error where a loss in it is not a finite number."""
        losses, norms = self._fetched(self.losses), torch.stack(self.norms).tolist()
        rate = max((r for name, r in self.rates.items() if name.startswith("encoder")), default=0.0)
        if not np.isfinite(losses).all():
            bad = int(np.argmin(np.isfinite(losses)))
            raise Fb3Error(
                f"{data.name}: the loss became {losses[bad]} at step {step.number - len(losses) + bad + 1} "
                f"(learning rate {rate:.2e}); try a lower optimizer.encoder_rate, optimizer.clip=1.0, "
                "schedule.warmup_share=0.1 or train.precision=fp32. The best checkpoint so far is kept"
            )
        self.total, self.count = self.total + sum(losses), self.count + len(losses)
        elapsed = time.monotonic() - self.start
        self.log.window(
            advance,
            fold=data.fold,
            epoch=step.epoch + 1,
            step=step.number,
            loss=sum(losses) / len(losses),
            terms={name: fmean(self._fetched(values)) for name, values in self.terms.items()},
            mean_loss=self.total / self.count,
            gradient_norm=sum(norms) / len(norms),
            rate=rate,
            head_rate=self.rates.get("head.decay", 0.0),
            elapsed=round(elapsed, 1),
            remaining=round(elapsed / step.number * (data.steps - step.number), 1),
        )
        self.losses, self.norms, self.terms = [], [], {}

    def _fetched(self, values: list[Tensor]) -> list[float]:
        """The values as numbers, each the mean over the processes."""
        return self.accelerator.reduce(torch.stack(values), "mean").tolist()
