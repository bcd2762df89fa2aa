"""The last few optimizer steps: their losses and gradient norms, logged as means."""

import time
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from fb3.errors import Fb3Error
from fb3.system.progress import Advance
from fb3.tasks.base import StepOutput
from fb3.training.run_log import RunLog
from fb3.training.tricks.trick import Step


class LossWindow:
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

    @property
    def length(self) -> int:
        """Optimizer steps in it."""
        return len(self.losses)

    def add(self, out: StepOutput, norm: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Adds a step, before the schedule moves on: the rates logged are the ones that the step is made with."""
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

    def close(self, advance: Advance, step: Step, fold: int, steps: int) -> None:
        """Logs the window and starts the next.

        Raises:
            Fb3Error: a loss in it is not a finite number.
        """
        losses, norms = self._fetched(self.losses), torch.stack(self.norms).tolist()
        rate = max((r for name, r in self.rates.items() if name.startswith("encoder")), default=0.0)
        if not np.isfinite(losses).all():
            bad = int(np.argmin(np.isfinite(losses)))
            raise Fb3Error(
                f"fold {fold}: the loss became {losses[bad]} at step {step.number - len(losses) + bad + 1} "
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
        """The values as numbers, each the mean over the processes."""
        return self.accelerator.reduce(torch.stack(values), "mean").tolist()
