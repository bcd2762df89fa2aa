"""The loop: epochs, optimizer steps, evaluations. It names no trick, no task and no data set."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from fb3.data.batches import Batch, collate, on_device, training_batches
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe.training import OptimizerSettings, TrainSettings
from fb3.system.devices import out_of_memory
from fb3.system.progress import Advance, progress
from fb3.tasks.base import StepOutput, Task
from fb3.training.memory import Parts
from fb3.training.parameter_groups import trainable
from fb3.training.run_log import RunLog
from fb3.training.tricks.trick import Step, Trick


class Loop:
    """Trains one fold.

    Args:
        accelerator: device, precision, processes.
        scorer: the model, not yet prepared; on its device.
        optimizer, schedule: for its parameters; the schedule counts optimizer steps.
        task: gives the loss; on the device.
        tricks: around the step, outermost first.
        encoded, targets: all essays' tokens and scores, (N, K).
        settings, optimizer_settings: of the recipe.
        evaluate: scores the model as it stands; called at the end of each epoch and where the recipe asks.
        log: takes the events.
        parts: in how many a batch is computed.
        pause: called after each optimizer step, before the evaluation that may be due: a save is a state from which
            `run` goes on, and one that goes on begins with that evaluation.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        scorer: Scorer,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        *,
        task: Task,
        tricks: Sequence[Trick],
        encoded: Encoded,
        targets: np.ndarray,
        settings: TrainSettings,
        optimizer_settings: OptimizerSettings,
        evaluate: Callable[[Step], None],
        log: RunLog,
        parts: Parts,
        pause: Callable[["Loop"], None],
    ) -> None:
        self.accelerator = accelerator
        self.scorer = scorer
        self.schedule = schedule
        self.task = task
        self.tricks = tricks
        self.encoded = encoded
        self.targets = targets
        self.settings = settings
        self.clip, self.unscale = optimizer_settings.clip, optimizer_settings.unscale
        self.evaluate = evaluate
        self.parts = parts
        self.pause = pause
        self.step, self.window = Step(scorer, {}), _Window(accelerator, log)
        self.model, self.optimizer = accelerator.prepare(scorer, optimizer)
        self.parameters = [*trainable(scorer), *task.parameters()]

    def run(self, fold: int, rows: np.ndarray, steps: int, seed: int) -> None:
        """Trains on `rows` for `steps` optimizer steps in all, or what `self.step` says is left of them.

        Raises:
            Fb3Error: the loss is no longer a number; says at which step.
        """
        step, window, size = self.step, self.window, self.settings.accumulation
        per_epoch, batches = steps // self.settings.epochs, None
        self.scorer.train()
        with progress(f"fold {fold}", steps, self.accelerator.is_main_process, done=step.number) as advance:
            if step.number and self.due(per_epoch):
                self.score()
            while step.number < steps:
                step.epoch, place = divmod(step.number, per_epoch)
                if batches is None or place == 0:
                    batches = training_batches(
                        self.encoded.total_lengths, rows, self.settings.batch_size, seed, step.epoch
                    )
                self.optimizer_step(step, batches[place * size : (place + 1) * size], window)
                step.number += 1
                step.progress = step.number / steps
                due = self.due(per_epoch)
                if due or window.length >= self.settings.log_every_steps:
                    window.close(advance, step, fold, steps)
                self.pause(self)
                if due:
                    self.score()

    def due(self, per_epoch: int) -> bool:
        """Whether the weights are to be evaluated after the last step."""
        number, every = self.step.number, self.settings.evaluate_every_steps
        return number % per_epoch == 0 or (every is not None and number % every == 0)

    def score(self) -> None:
        """Evaluates the weights that the tricks put in place."""
        with ExitStack() as stack:
            for trick in self.tricks:
                stack.enter_context(trick.eval_weights(self.step))
            self.evaluate(self.step)

    def optimizer_step(self, step: Step, batches: list[np.ndarray], window: "_Window") -> None:
        """One step of the optimizer from one batch or, with accumulation, several; each essay weighs the same.

        Raises:
            Fb3Error: memory does not suffice, however small the parts.
        """
        while (out := self.gradients(step, batches)) is None:
            self.parts.relieve(step.number + 1, max(map(len, batches)))
        if self.unscale:
            self.accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        window.add(out, norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            for trick in self.tricks:
                trick.after_step(step)

    def gradients(self, step: Step, batches: list[np.ndarray]) -> StepOutput | None:
        """Leaves the gradients of the batches' mean loss and gives that loss; none where memory ran out."""
        essays = sum(len(rows) for rows in batches)
        try:
            outs = []
            for position, rows in enumerate(batches):
                backward = partial(
                    self.backward, step, self.share(rows, essays, step.progress), syncs=position == len(batches) - 1
                )
                for trick in reversed(self.tricks):
                    backward = partial(trick.backward, step, backward)
                outs.append(backward())
            return _added(outs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        self.optimizer.zero_grad()  # the tricks have put back what they moved; what the attempt held is free by now
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def backward(self, step: Step, parts: list[tuple[Batch, float]], syncs: bool) -> StepOutput:
        """Forward and backward of this process's share of a batch, part by part.

        Returns:
            The loss of the whole and its terms, detached.
        """
        outs = []
        for place, (step.batch, weight) in enumerate(parts):
            last = syncs and place == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, logs = self.task.loss(self.model, step.batch)
                loss = loss * weight
                self.accelerator.backward(loss)
            logs = {name: value.detach().float() * weight for name, value in logs.items()}
            outs.append(StepOutput(loss.detach().float(), logs))
        return _added(outs)

    def share(self, rows: np.ndarray, essays: int, done: float) -> list[tuple[Batch, float]]:
        """This process's part of a batch in as many parts as memory asks for, each with its weight among `essays`.

        The batch says how much of the run is `done`, 0-1, for losses that change over it.
        Gradients are averaged over processes, so the weight is times their number. A process that gets no essay takes
        the first with weight 0: all must take part.
        """
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        shares = []
        for part in np.array_split(mine, min(self.parts.number, len(mine))) if len(mine) else [mine]:
            batch = collate(self.encoded, part if len(part) else rows[:1], self.targets)
            batch["progress"] = torch.tensor(done)
            weight = len(part) * self.accelerator.num_processes / essays
            shares.append((on_device(batch, self.accelerator.device), weight))
        return shares


def _added(outs: Sequence[StepOutput]) -> StepOutput:
    """Sums of what parts of a batch gave, each weighted already."""
    logs = {name: torch.stack([out.logs[name] for out in outs]).sum() for name in outs[0].logs}
    return StepOutput(torch.stack([out.loss for out in outs]).sum(), logs)


class _Window:
    """Losses, their terms and gradient norms of the last few steps, fetched from the device together."""

    def __init__(self, accelerator: Accelerator, log: RunLog) -> None:
        self.accelerator, self.log = accelerator, log
        self.start = time.monotonic()
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.terms: dict[str, list[Tensor]] = {}
        self.rates: dict[str, float] = {}
        self.total, self.count = 0.0, 0

    @property
    def length(self) -> int:
        return len(self.losses)

    def add(self, out: StepOutput, norm: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Takes what a step is made with, before the optimizer and the schedule move on."""
        self.losses.append(out.loss)
        self.norms.append(norm.detach().float())
        for name, value in out.logs.items():
            self.terms.setdefault(name, []).append(value)
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}

    def state(self) -> dict[str, Any]:
        """What is not logged yet, and what the means and times count on."""
        return {
            "losses": torch.stack(self.losses) if self.losses else None,
            "norms": torch.stack(self.norms) if self.norms else None,
            "terms": {name: torch.stack(values) for name, values in self.terms.items()},
            "total": self.total,
            "count": self.count,
            "elapsed": time.monotonic() - self.start,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        device = self.accelerator.device
        losses, norms = state["losses"], state["norms"]
        self.losses = [] if losses is None else list(losses.to(device).unbind())
        self.norms = [] if norms is None else list(norms.to(device).unbind())
        terms = state.get("terms", {})  # earlier versions did not save them
        self.terms = {name: list(values.to(device).unbind()) for name, values in terms.items()}
        self.total, self.count = state["total"], state["count"]
        self.start = time.monotonic() - state["elapsed"]

    def close(self, advance: Advance, step: Step, fold: int, steps: int) -> None:
        """Logs the window and starts the next.

        Raises:
            Fb3Error: a loss in it is no number.
        """
        losses = self._fetched(self.losses)
        norms = torch.stack(self.norms).tolist()
        rate = max((r for name, r in self.rates.items() if name.startswith("encoder")), default=0.0)
        if not np.isfinite(losses).all():
            first = step.number - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
            raise Fb3Error(
                f"fold {fold}: the loss became {losses[first - step.number - 1]} at step {first} "
                f"(learning rate {rate:.2e}); try a lower optimizer.encoder_rate, optimizer.clip=1.0, "
                "schedule.warmup_share=0.1 or train.precision=fp32. The fold's best checkpoint so far is kept"
            )
        self.total, self.count = self.total + sum(losses), self.count + len(losses)
        elapsed = time.monotonic() - self.start
        self.log.window(
            advance,
            len(losses),
            fold=fold,
            epoch=step.epoch + 1,
            step=step.number,
            loss=sum(losses) / len(losses),
            terms={name: fmean(self._fetched(values)) for name, values in self.terms.items()},
            mean_loss=self.total / self.count,
            gradient_norm=sum(norms) / len(norms),
            rate=rate,
            head_rate=self.rates.get("head.decay", 0.0),
            elapsed=round(elapsed, 1),
            remaining=round(elapsed / step.number * (steps - step.number), 1),
        )
        self.losses, self.norms, self.terms = [], [], {}

    def _fetched(self, values: list[Tensor]) -> list[float]:
        """The means over the processes."""
        return self.accelerator.reduce(torch.stack(values), "mean").tolist()
