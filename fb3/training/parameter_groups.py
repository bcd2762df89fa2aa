"""Parameter groups: which weights train, at which rate, with which decay."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from fb3.errors import Fb3Error
from fb3.models.image_tower import IMAGES
from fb3.models.layer_stack import depth_of_parameters, is_bias, is_norm
from fb3.models.scorer import Scorer
from fb3.recipe.training import OptimizerSettings


def parameter_groups(scorer: Scorer, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for the optimizer: rate by layer or third, weight decay by kind of parameter.

    The encoder's top layer gets `encoder_rate`, each layer (or third) below `layer_decay` times the one above, the
    embeddings least, or `embeddings_rate`; an image encoder gets `image_rate`, pooling and head get `head_rate`. Biases
    and normalisation weights do not decay. Frozen parameters are in no group; every other one is in exactly one.

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
        elif name.startswith(IMAGES):
            part, rate = "images", settings.image_rate
        decay = 0.0 if id(parameter) in undecayed else settings.weight_decay
        key = f"{part}.{'plain' if id(parameter) in undecayed else 'decay'}"
        groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": decay, "name": key})
        groups[key]["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    wanted = {id(p) for p in scorer.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter counted twice"
    assert set(grouped) == wanted, "a parameter left out"
    return list(groups.values())


def _depths(scorer: Scorer, settings: OptimizerSettings) -> dict[str, tuple[str, int, int]]:
    """Maps an encoder parameter's name to the encoder's prefix, the parameter's depth, and the top layer's depth."""
    flat = settings.layer_decay == 1.0 and settings.embeddings_rate is None  # one rate: the layers need not be known
    found = {}
    for prefix, tower in scorer.towers().items():
        depths, top = {name: 0 for name, _ in tower.encoder.named_parameters()}, 0
        if not flat and any(p.requires_grad for p in tower.encoder.parameters()):
            depths, top = depth_of_parameters(tower.encoder)
        found |= {f"{prefix}encoder.{name}": (prefix, depth, top) for name, depth in depths.items()}
    return found


def _encoder_rate(depth: int, top: int, settings: OptimizerSettings) -> float:
    """The rate at a depth: 0 is the embeddings, `top` the highest layer."""
    if depth == 0 and top and settings.embeddings_rate is not None:
        return settings.embeddings_rate
    below = top - depth
    if settings.decay_by == "thirds" and top:
        below = min(2, 3 * (top - depth) // top)  # the embeddings go with the lowest third
    return settings.encoder_rate * settings.layer_decay**below


def _check_thirds(places: Iterable[tuple[str, int, int]], settings: OptimizerSettings) -> None:
    by_layer = settings.model_copy(update={"decay_by": "layer"})
    same = all(_encoder_rate(d, top, settings) == _encoder_rate(d, top, by_layer) for _, d, top in places)
    if settings.decay_by == "thirds" and same:
        raise Fb3Error("optimizer.decay_by=thirds gives this encoder the rates that layer gives it; leave it out")


def _undecayed(scorer: Scorer) -> set[int]:
    norms = (p for m in scorer.modules() if is_norm(m) for p in m.parameters(recurse=False))
    biases = (p for name, p in scorer.named_parameters() if is_bias(name))
    return {id(p) for p in (*norms, *biases)}


def trainable(scorer: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [p for p in scorer.parameters() if p.requires_grad]
