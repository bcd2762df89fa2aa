"""The learning rate over the run."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fb3.recipe.training import ScheduleSettings


def build_schedule(optimizer: torch.optim.Optimizer, settings: ScheduleSettings, steps: int) -> LRScheduler:
    """The schedule of a recipe over `steps` optimizer steps."""
    warmup = settings.warmup_steps or round(settings.warmup_share * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return max(settings.floor, _shape(settings, done))

    return LambdaLR(optimizer, factor)


def _shape(settings: ScheduleSettings, done: float) -> float:
    """The factor after a share of the run, 0-1, that follows the warm-up."""
    match settings.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "polynomial":
            return (1.0 - done) ** settings.power
        case "cosine_restarts":
            return 0.0 if done >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * (settings.cycles * done % 1.0)))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 2.0 * settings.cycles * done)))
