"""Optimizer, its parameter groups and its schedule."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from fb3.models import Scorer
from fb3.models.encoder import depth_of_parameters
from fb3.recipe.groups import OptimizerGroup, ScheduleGroup


def parameter_groups(scorer: Scorer, settings: OptimizerGroup) -> list[dict[str, Any]]:
    """Groups for the optimizer: rate by layer, weight decay by kind of parameter.

    The encoder's top layer gets `encoder_rate`, each layer below `layer_decay` times the one above, the embeddings
    least; pooling and head get `head_rate`. Biases and normalisation weights do not decay. Frozen parameters are in
    no group; every other one is in exactly one.

    Returns:
        Dicts with params, lr, weight_decay and a name such as "encoder.6.decay" or "head.plain".
    """
    if settings.layer_decay == 1.0:
        depths, top = {}, 0
    else:
        depths, top = depth_of_parameters(scorer.encoder)
    undecayed = _undecayed(scorer)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in scorer.named_parameters():
        if not parameter.requires_grad:
            continue
        in_encoder = name.startswith("encoder.")
        depth = depths.get(name.removeprefix("encoder."), top)
        part = f"encoder.{depth}" if in_encoder else "head"
        rate = settings.encoder_rate * settings.layer_decay ** (top - depth) if in_encoder else settings.head_rate
        decay = 0.0 if id(parameter) in undecayed else settings.weight_decay
        key = f"{part}.{'plain' if id(parameter) in undecayed else 'decay'}"
        groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": decay, "name": key})
        groups[key]["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    wanted = {id(p) for p in scorer.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter counted twice"
    assert set(grouped) == wanted, "a parameter left out"
    return list(groups.values())


def _undecayed(scorer: Scorer) -> set[int]:
    norms = (p for m in scorer.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False))
    biases = (p for name, p in scorer.named_parameters() if name.endswith("bias"))
    return {id(p) for p in (*norms, *biases)}


def build_optimizer(scorer: Scorer, settings: OptimizerGroup, scaled: bool) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        scorer: its trainable parameters.
        settings: rates and decay.
        scaled: fp16 with a gradient scaler; then not fused, because a fused step swallows the sign of a skipped one.
    """
    device = next(scorer.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(scorer, settings),
        eps=settings.eps,
        betas=settings.betas,
        fused=device in {"cpu", "cuda"} and not scaled,
    )


def build_schedule(optimizer: torch.optim.Optimizer, settings: ScheduleGroup, steps: int) -> LRScheduler:
    """The schedule of a recipe over `steps` optimizer steps."""
    warmup = settings.warmup_steps or round(settings.warmup_share * steps)
    if settings.kind == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup)
    if settings.kind == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, steps)
    return get_cosine_schedule_with_warmup(optimizer, warmup, steps, num_cycles=settings.cycles)


def trainable(scorer: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [p for p in scorer.parameters() if p.requires_grad]
