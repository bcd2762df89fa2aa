"""Optimizer, its parameter groups and its schedule."""

import importlib
import math
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fb3.errors import Fb3Error
from fb3.models.layer_stack import depth_of_parameters, is_bias, is_norm
from fb3.models.scorer import Scorer
from fb3.recipe.training import MANY_STEPS, OptimizerGroup, ScheduleGroup


def parameter_groups(scorer: Scorer, settings: OptimizerGroup) -> list[dict[str, Any]]:
    """Groups for the optimizer: rate by layer or third, weight decay by kind of parameter.

    The encoder's top layer gets `encoder_rate`, each layer (or third) below `layer_decay` times the one above, the
    embeddings least, or `embeddings_rate`; pooling and head get `head_rate`. Biases and normalisation weights do not
    decay. Frozen parameters are in no group; every other one is in exactly one.

    Returns:
        Dicts with params, lr, weight_decay and a name such as "encoder.6.decay" or "head.plain".

    Raises:
        Fb3Error: the encoder's layers are not known, or so few that thirds are layers.
    """
    depths = _depths(scorer, settings)
    _check_thirds(depths.values(), settings)
    undecayed = _undecayed(scorer)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in scorer.named_parameters():
        if not parameter.requires_grad:
            continue
        part, rate = "head", settings.head_rate
        if name in depths:
            part, depth, top = depths[name]
            part, rate = f"{part}encoder.{depth}", _encoder_rate(depth, top, settings)
        decay = 0.0 if id(parameter) in undecayed else settings.weight_decay
        key = f"{part}.{'plain' if id(parameter) in undecayed else 'decay'}"
        groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": decay, "name": key})
        groups[key]["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    wanted = {id(p) for p in scorer.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter counted twice"
    assert set(grouped) == wanted, "a parameter left out"
    return list(groups.values())


def _depths(scorer: Scorer, settings: OptimizerGroup) -> dict[str, tuple[str, int, int]]:
    """For each parameter of an encoder, by name: which encoder, its depth there, and the depth of the top."""
    flat = settings.layer_decay == 1.0 and settings.embeddings_rate is None  # then the layers need not be known
    found = {}
    for prefix, tower in scorer.towers().items():
        depths, top = {name: 0 for name, _ in tower.encoder.named_parameters()}, 0
        if not flat and any(p.requires_grad for p in tower.encoder.parameters()):
            depths, top = depth_of_parameters(tower.encoder)
        found |= {f"{prefix}encoder.{name}": (prefix, depth, top) for name, depth in depths.items()}
    return found


def _encoder_rate(depth: int, top: int, settings: OptimizerGroup) -> float:
    """The rate at a depth: 0 the embeddings, `top` the highest layer."""
    if depth == 0 and top and settings.embeddings_rate is not None:
        return settings.embeddings_rate
    below = top - depth
    if settings.decay_by == "thirds" and top:
        below = min(2, 3 * (top - depth) // top)  # the embeddings go with the lowest third
    return settings.encoder_rate * settings.layer_decay**below


def _check_thirds(places: Iterable[tuple[str, int, int]], settings: OptimizerGroup) -> None:
    by_layer = settings.model_copy(update={"decay_by": "layer"})
    same = all(_encoder_rate(d, top, settings) == _encoder_rate(d, top, by_layer) for _, d, top in places)
    if settings.decay_by == "thirds" and same:
        raise Fb3Error("optimizer.decay_by=thirds gives this encoder the rates that layer gives it; leave it out")


def _undecayed(scorer: Scorer) -> set[int]:
    norms = (p for m in scorer.modules() if is_norm(m) for p in m.parameters(recurse=False))
    biases = (p for name, p in scorer.named_parameters() if is_bias(name))
    return {id(p) for p in (*norms, *biases)}


def build_optimizer(
    scorer: Scorer, settings: OptimizerGroup, scaled: bool, of_task: Iterable[nn.Parameter] = ()
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


def _library(name: str, settings: OptimizerGroup) -> ModuleType:
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


def build_schedule(optimizer: torch.optim.Optimizer, settings: ScheduleGroup, steps: int) -> LRScheduler:
    """The schedule of a recipe over `steps` optimizer steps."""
    warmup = settings.warmup_steps or round(settings.warmup_share * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return max(settings.floor, _shape(settings, done))

    return LambdaLR(optimizer, factor)


def _shape(settings: ScheduleGroup, done: float) -> float:
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


def trainable(scorer: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [p for p in scorer.parameters() if p.requires_grad]
