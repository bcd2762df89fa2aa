"""Optimizers: a function for each kind, from parameter groups and the kind's settings."""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.recipe.training import MANY_STEPS, AdamSettings, AdamWSettings, MadgradSettings, OptimizerSettings
from fb3.training.parameter_groups import parameter_groups

_Groups = list[dict[str, Any]]


def build_optimizer(
    scorer: Scorer, settings: OptimizerSettings, scaled: bool, of_task: Iterable[nn.Parameter] = ()
) -> Optimizer:
    """The optimizer of a recipe; all of them decay the weights apart from the gradient.

    Args:
        scorer: the model whose trainable parameters it updates.
        settings: kind, rates and decay.
        scaled: whether a gradient scaler for fp16 calls its steps.
        of_task: parameters that the task trains beside the model: a group "task" at head_rate, without decay.

    Raises:
        Fb3Error: a library that the kind wants is not installed, or there is no GPU for it.
    """
    groups = parameter_groups(scorer, settings)
    if own := list(of_task):
        groups.append({"params": own, "lr": settings.head_rate, "weight_decay": 0.0, "name": "task"})
    return OPTIMIZERS[settings.kind](groups, settings, scaled)


def _adamw(groups: _Groups, settings: AdamWSettings, scaled: bool) -> Optimizer:
    # A fused step swallows the sign of a step that the scaler skips. fused=None lets torch pick the multi-tensor
    # kernel; False would update one tensor after the other, even on a GPU.
    fused = True if _device(groups) in {"cpu", "cuda"} and not scaled else None
    optimizer = torch.optim.AdamW(groups, fused=fused, **_moments(settings))
    if not settings.bias_correction:
        _before_each_step(optimizer, _as_after_many_steps)
    return optimizer


def _adafactor(groups: _Groups, settings: OptimizerSettings, scaled: bool) -> Optimizer:
    from transformers.optimization import Adafactor  # slow to import

    return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)


def _madgrad(groups: _Groups, settings: MadgradSettings, scaled: bool) -> Optimizer:
    """MADGRAD with a decay that lasts: the start and the sum of gradients shrink with the weights.

    The library's own decay shrinks the weights alone. Its dual averaging puts back a tenth of what they lost at each
    step, so that they never lose more than rate · decay · 10 of themselves.
    """
    groups = [{**group, "weight_decay": 0.0, "decay": group["weight_decay"]} for group in groups]
    optimizer = _library("pytorch_optimizer", settings).MADGRAD(groups, eps=settings.eps)

    def decay(stepping: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> None:
        state = stepping.state[parameter]
        for tensor in (parameter, *(state[name] for name in ("x0", "s") if name in state)):
            tensor.mul_(1.0 - group["lr"] * group["decay"])

    _before_each_step(optimizer, decay)
    return optimizer


def _adamw_8bit(groups: _Groups, settings: AdamSettings, scaled: bool) -> Optimizer:
    if _device(groups) != "cuda":
        raise Fb3Error("optimizer.kind=adamw_8bit wants a GPU; take adamw, or adafactor to save memory")
    return _library("bitsandbytes", settings).optim.AdamW8bit(groups, **_moments(settings))


OPTIMIZERS: dict[str, Callable[[_Groups, Any, bool], Optimizer]] = {
    "adamw": _adamw,
    "radam": lambda groups, settings, _: torch.optim.RAdam(groups, decoupled_weight_decay=True, **_moments(settings)),
    "nadam": lambda groups, settings, _: torch.optim.NAdam(groups, decoupled_weight_decay=True, **_moments(settings)),
    "adafactor": _adafactor,
    # The library's default steps go uphill until radam is rectified.
    "ranger": lambda groups, settings, _: _library("pytorch_optimizer", settings).Ranger(
        groups, degenerated_to_sgd=True, **_moments(settings)
    ),
    # The library's default divides a step of normed length by Adam's correction: the first is ten times too long.
    "lamb": lambda groups, settings, _: _library("pytorch_optimizer", settings).Lamb(
        groups, adam_debias=True, **_moments(settings)
    ),
    "madgrad": _madgrad,
    "adamw_8bit": _adamw_8bit,
}


def _device(groups: _Groups) -> str:
    return groups[0]["params"][0].device.type


def _moments(settings: AdamSettings) -> dict[str, Any]:
    return {"eps": settings.eps, "betas": settings.betas}


def _library(name: str, settings: OptimizerSettings) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Fb3Error(f"optimizer.kind={settings.kind}: {name} is not installed; pip install {name}") from None


def _before_each_step(optimizer: Optimizer, change: Callable[[Optimizer, dict[str, Any], nn.Parameter], None]) -> None:
    """Calls `change(optimizer, group, parameter)` before each step, for all parameters with a gradient."""

    @torch.no_grad()
    def hook(stepping: Optimizer, args: tuple, kwargs: dict) -> None:
        for group in stepping.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change(stepping, group, parameter)

    optimizer.register_step_pre_hook(hook)


def _as_after_many_steps(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> None:
    """BertAdam: AdamW begins with moments of 0 but a count of steps at which the corrections have become 1."""
    if not optimizer.state[parameter]:
        device = parameter.device if group["fused"] else "cpu"
        optimizer.state[parameter] = {
            "step": torch.tensor(float(MANY_STEPS), dtype=torch.float32, device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
