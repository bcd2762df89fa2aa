"""Schedules: the learning rate over the run, as a factor of its peak."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fb3.recipe.training import CosineScheduleSettings, RestartsScheduleSettings, ScheduleSettings


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: ScheduleSettings, steps: int, first: int = 0, later_rate: float = 1.0
) -> LRScheduler:
    """The schedule of a recipe over `steps` optimizer steps.

    Of these, `first` have a whole schedule of their own; the others begin another, whose rates are times `later_rate`.
    """

    def factor(step: int) -> float:
        if step < first:
            return schedule_factor(settings, step, first)
        return later_rate * schedule_factor(settings, step - first, steps - first)

    return LambdaLR(optimizer, factor)


def schedule_factor(settings: ScheduleSettings, step: int, steps: int) -> float:
    """The share of the peak rate at one of `steps` steps."""
    warmup = settings.warmup_steps or round(settings.warmup_share * steps)
    if step < warmup:
        return step / max(1, warmup)
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    floor = getattr(settings, "floor", 0.0)  # a constant rate has none
    return max(floor, SCHEDULES[settings.kind](settings, done))


def _cosine(settings: CosineScheduleSettings, done: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 2.0 * settings.cycles * done)))


def _restarts(settings: RestartsScheduleSettings, done: float) -> float:
    fall = settings.cycles * done % 1.0  # 0 at the end again, where no fall begins
    return 0.0 if done >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * fall))


# The factor by kind, from its settings and the share `done`, 0-1, of the steps that follow the warm-up.
SCHEDULES: dict[str, Callable[[Any, float], float]] = {
    "cosine": _cosine,
    "cosine_restarts": _restarts,
    "linear": lambda settings, done: 1.0 - done,
    "polynomial": lambda settings, done: (1.0 - done) ** settings.power,
    "constant": lambda settings, done: 1.0,
}
