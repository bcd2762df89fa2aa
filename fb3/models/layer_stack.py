"""An encoder's layers, the depth of each parameter, and its limit of positions, for each family of transformers."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fb3.errors import Fb3Error
from fb3.system.file_names import PADDED

_PROBE = 9  # tokens of the text that shows where positions are looked up
# The places where families of transformers keep their layers.
_STACKS = (
    "encoder.layer",
    "encoder.layers",
    "encoder.blocks",
    "encoder.block",
    "encoder.albert_layer_groups",
    "transformer.layer",
    "layer",
    "layers",
)


def layer_stack(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's layers, lowest first (blocks for Funnel; one shared layer for ALBERT); empty where unknown."""
    for path in _STACKS:
        module: Any = encoder
        for part in path.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.ModuleList) and len(module):
            return list(module)
    return []


def parameters_by_depth(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of the embeddings, then of each layer, lowest first; no layers where they are unknown.

    The embeddings include their norms and projections, and position tables that all layers share: DeBERTa's with its
    norm, and T5's, which is kept in the lowest block. A layer's own table belongs to the layer. DeBERTa's convolution
    belongs to the first layer, whose output it joins. Parameters above the layers are left out.
    """
    named = dict(encoder.named_parameters())
    below = {name for name in named if any("embed" in part or "_emb" in part for part in name.split(".")[:2])}
    if "encoder.rel_embeddings.weight" in named:
        below |= {name for name in named if name.startswith("encoder.LayerNorm.")}
    tables = {name for name in named if name.endswith("relative_attention_bias.weight")}
    below |= tables if len(tables) == 1 else set()
    embeddings = [*encoder.get_input_embeddings().parameters(), *(named[name] for name in sorted(below))]
    taken = {id(p) for p in embeddings}
    layers = [[p for p in layer.parameters() if id(p) not in taken] for layer in layer_stack(encoder)]
    if layers:
        layers[0] += [p for name, p in named.items() if name.startswith("encoder.conv.")]
    return [embeddings, *layers]


def depth_of_parameters(encoder: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of each parameter by name, and the number of layers n; an Fb3Error where the layers are not known.

    Embeddings have depth 0, layers 1 to n (see `parameters_by_depth`), and parameters above the layers n.
    """
    parts = parameters_by_depth(encoder)
    top = len(parts) - 1
    if getattr(encoder.config, "num_hidden_layers", None) == 0:
        top = 1  # word vectors: embeddings alone, whose rate is that of embeddings below one layer
    if not top:
        raise Fb3Error(f"{type(encoder).__name__}: its layers are not known; set optimizer.layer_decay=1.0")
    depth = {id(p): number for number, part in enumerate(parts) for p in part}
    return {name: depth.get(id(p), top) for name, p in encoder.named_parameters()}, top


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, by its name: `bias`, and `q_bias` of DeBERTa or `r_w_bias` of XLNet."""
    return "bias" in name.rsplit(".", 1)[-1].split("_")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation, by its class's name, since families have classes of their own."""
    return "Norm" in type(module).__name__


def longest_input(encoder: nn.Module) -> int | None:
    """The most tokens that the encoder has learned positions for; none if positions are computed, or relative only.

    A trial text on the CPU shows it: neighbouring tokens look up neighbouring rows in a table of positions.
    """
    tokens = getattr(encoder.config, PADDED, 0) or _PROBE
    ids = torch.full((1, tokens), 1 if encoder.config.pad_token_id != 1 else 2)
    with torch.no_grad(), _PositionsLookedUp(tokens) as seen:
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    return min(seen.limits, default=None)


class _PositionsLookedUp(TorchFunctionMode):
    """Notes the number of positions of each table where neighbouring tokens look up neighbouring rows."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.limits = tokens, set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.embedding:
            self._note(args[0], len(args[1]))
        elif func is torch.gather and not args[0].is_floating_point():  # RoBERTa's token types, by position
            index, dim = kwargs.get("index", args[-1]), kwargs.get("dim", 1)
            self._note(index, args[0].shape[dim])
        return func(*args, **kwargs)

    def _note(self, places: torch.Tensor, rows: int) -> None:
        places = places.flatten()[: self.tokens]
        if len(places) == self.tokens and bool((places.diff() == 1).all()):
            self.limits.add(rows - int(places[0]))
