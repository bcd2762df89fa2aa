"""Optimizer, its parameter groups and its schedule."""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe.training import MANY_STEPS, OptimizerSettings
from fb3.training.parameter_groups import parameter_groups


def build_optimizer(
    scorer: Scorer, settings: OptimizerSettings, scaled: bool, of_task: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a recipe; all of them decay the weights apart from the gradient.

    Args:
        scorer: its trainable parameters.
        settings: kind, rates and decay.
        scaled: fp16 with a gradient scaler; then not fused, because a fused step swallows the sign of a skipped one.
        of_task: what the task trains of its own: a group "task" at head_rate, without decay.

    Raises:
        Fb3Error: a library that the kind wants is not installed, or there is no GPU for it.
    """
    groups = parameter_groups(scorer, settings)
    if own := list(of_task):
        groups.append({"params": own, "lr": settings.head_rate, "weight_decay": 0.0, "name": "task"})
    device = next(scorer.parameters()).device.type
    moments = {"eps": settings.eps, "betas": settings.betas}
    match settings.kind:
        case "radam":
            return torch.optim.RAdam(groups, decoupled_weight_decay=True, **moments)
        case "nadam":
            return torch.optim.NAdam(groups, decoupled_weight_decay=True, **moments)
        case "adafactor":
            from transformers.optimization import Adafactor  # imports much

            return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)
        case "ranger":  # the library's default climbs, with the sign of the step turned, until radam is rectified
            return _library("pytorch_optimizer", settings).Ranger(groups, degenerated_to_sgd=True, **moments)
        case "lamb":  # the library's default divides a step of normed length by Adam's correction: the first times 10
            return _library("pytorch_optimizer", settings).Lamb(groups, adam_debias=True, **moments)
        case "madgrad":
            return _madgrad(_library("pytorch_optimizer", settings), groups, settings.eps)
        case "adamw_8bit":
            if device != "cuda":
                raise Fb3Error("optimizer.kind=adamw_8bit wants a GPU; take adamw, or adafactor to save memory")
            return _library("bitsandbytes", settings).optim.AdamW8bit(groups, **moments)
    # Not fused is left open, not refused: by fused=False torch would take one tensor after the other, on a GPU too.
    fused = True if device in {"cpu", "cuda"} and not scaled else None
    optimizer = torch.optim.AdamW(groups, fused=fused, **moments)
    if not settings.bias_correction:
        _before_each_step(optimizer, _as_after_many_steps)
    return optimizer


def _library(name: str, settings: OptimizerSettings) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Fb3Error(f"optimizer.kind={settings.kind}: {name} is not installed; pip install {name}") from None


_Change = Callable[[torch.optim.Optimizer, dict[str, Any], nn.Parameter], None]


def _before_each_step(optimizer: torch.optim.Optimizer, change: _Change) -> None:
    """Calls `change(optimizer, group, parameter)` before each step, for all parameters with a gradient."""

    @torch.no_grad()
    def hook(stepping: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for group in stepping.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change(stepping, group, parameter)

    optimizer.register_step_pre_hook(hook)


def _as_after_many_steps(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> None:
    """BertAdam: AdamW begins with moments of 0 but a count of steps at which the corrections have become 1."""
    if not optimizer.state[parameter]:
        device = parameter.device if group["fused"] else "cpu"
        optimizer.state[parameter] = {
            "step": torch.tensor(float(MANY_STEPS), dtype=torch.float32, device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def _madgrad(library: ModuleType, groups: list[dict[str, Any]], eps: float) -> torch.optim.Optimizer:
    """MADGRAD with a decay that lasts: the way from the start shrinks with the weights, and so does the start.

    The library's own shrinks the weights alone, to which its dual averaging puts back a tenth of what is missing at
    each step, so that they never lose more than rate · decay · 10 of themselves.
    """
    groups = [{**group, "weight_decay": 0.0, "decay": group["weight_decay"]} for group in groups]
    optimizer = library.MADGRAD(groups, eps=eps)

    def decay(stepping: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> None:
        state = stepping.state[parameter]
        for tensor in (parameter, *(state[name] for name in ("x0", "s") if name in state)):
            tensor.mul_(1.0 - group["lr"] * group["decay"])

    _before_each_step(optimizer, decay)
    return optimizer
