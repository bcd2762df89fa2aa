"""Optimizer, its parameter groups and its schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fb3.models import Scorer
from fb3.models.encoder import depth_of_parameters
from fb3.recipe.groups import OptimizerGroup, ScheduleGroup


def parameter_groups(scorer: Scorer, settings: OptimizerGroup) -> list[dict[str, Any]]:
    """Groups for the optimizer: rate by layer or third, weight decay by kind of parameter.

    The encoder's top layer gets `encoder_rate`, each layer (or third) below `layer_decay` times the one above, the
    embeddings least, or `embeddings_rate`; pooling and head get `head_rate`. Biases and normalisation weights do not
    decay. Frozen parameters are in no group; every other one is in exactly one.

    Returns:
        Dicts with params, lr, weight_decay and a name such as "encoder.6.decay" or "head.plain".
    """
    flat = settings.layer_decay == 1.0 and settings.embeddings_rate is None
    depths, top = ({}, 0) if flat else depth_of_parameters(scorer.encoder)
    undecayed = _undecayed(scorer)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in scorer.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(name.removeprefix("encoder."), top)
        in_encoder = name.startswith("encoder.")
        part = f"encoder.{depth}" if in_encoder else "head"
        rate = _encoder_rate(depth, top, settings) if in_encoder else settings.head_rate
        decay = 0.0 if id(parameter) in undecayed else settings.weight_decay
        key = f"{part}.{'plain' if id(parameter) in undecayed else 'decay'}"
        groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": decay, "name": key})
        groups[key]["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    wanted = {id(p) for p in scorer.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter counted twice"
    assert set(grouped) == wanted, "a parameter left out"
    return list(groups.values())


def _encoder_rate(depth: int, top: int, settings: OptimizerGroup) -> float:
    """The rate at a depth: 0 the embeddings, `top` the highest layer."""
    if depth == 0 and top and settings.embeddings_rate is not None:
        return settings.embeddings_rate
    below = top - depth
    if settings.decay_by == "thirds" and top:
        below = min(2, 3 * (top - depth) // top)  # the embeddings go with the lowest third
    return settings.encoder_rate * settings.layer_decay**below


def _undecayed(scorer: Scorer) -> set[int]:
    norms = (p for m in scorer.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False))
    biases = (p for name, p in scorer.named_parameters() if name.rsplit(".", 1)[-1].startswith("bias"))
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
    """
    groups = parameter_groups(scorer, settings)
    if own := list(of_task):
        groups.append({"params": own, "lr": settings.head_rate, "weight_decay": 0.0, "name": "task"})
    moments = {"eps": settings.eps, "betas": settings.betas}
    if settings.kind == "radam":
        return torch.optim.RAdam(groups, decoupled_weight_decay=True, **moments)
    if settings.kind == "nadam":
        return torch.optim.NAdam(groups, decoupled_weight_decay=True, **moments)
    device = next(scorer.parameters()).device.type
    return torch.optim.AdamW(groups, fused=device in {"cpu", "cuda"} and not scaled, **moments)


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
