"""Heads of pretraining's objectives, which no exported encoder holds, and the generator of replaced tokens."""

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import cached_file

from fb3.errors import Fb3Error, one_line
from fb3.models.backbone_files import find_backbone
from fb3.models.layer_stack import layer_stack
from fb3.recipe.model import ModelSettings
from fb3.system.file_names import WEIGHTS

# Names that families give to a head's tensors. `lm_predictions` of DeBERTa's checkpoints is left out: no model that
# made these weights used it, and DeBERTa-v3 never trained it.
_STORED = {
    "dense": r"(transform\.|lm_head\.|^|generator_predictions\.|predictions\.|head\.)(dense|vocab_transform)",
    "norm": r"(transform\.|lm_head\.|generator_predictions\.|predictions\.|head\.|^)"
    r"(LayerNorm|layer_norm|norm|vocab_layer_norm)",
}
_HEAD = r"^(cls|lm_head|predictions|generator_|vocab_|head|decoder)"  # the beginnings of these names
_BIAS = r"(predictions|lm_head|generator_lm_head|vocab_projector|decoder)\.bias"


def word_embeddings(encoder: nn.Module) -> Tensor:
    """The encoder's input embeddings, (V, E); E is smaller than its states where the family factorises them."""
    return encoder.get_input_embeddings().weight


class MaskedTokenHead(nn.Module):
    """States at hidden places to logits over the vocabulary, by the encoder's own input embeddings.

    The embeddings are given to `forward`, so that they are no parameters of the head: they stay the encoder's, and
    travel with it.

    Args:
        encoder: its states are as wide as its config's hidden_size.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        tokens, width = word_embeddings(encoder).shape
        self.dense = nn.Linear(encoder.config.hidden_size, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(tokens))

    @torch.no_grad()
    def start(self, counts: Tensor, stored: Mapping[str, Tensor] | None = None) -> bool:
        """Starts at the weights that a checkpoint holds for such a head, else at the tokens' frequencies.

        Args:
            counts: how often each token is in the texts, (V,).
            stored: tensors of a checkpoint by name.

        Returns:
            Whether the checkpoint holds a head that fits.
        """
        if found := stored and self._found(stored):
            for name, tensor in self.named_parameters():
                tensor.zero_()  # a tokenizer with added tokens has more of them than the checkpoint
                if name in found:
                    tensor[: len(found[name])] = found[name]
            return True
        self.dense.weight.normal_(0.0, 0.02)
        self.dense.bias.zero_()
        # Without it, the first hundred steps learn nothing but which tokens are frequent.
        self.bias.copy_(((counts + 1.0) / (counts.sum() + len(counts))).log())
        return False

    def _found(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        wanted = {"bias": _BIAS} | {f"{part}.{of}": rf"{p}\.{of}" for part, p in _STORED.items() for of in _ENDS}
        found = {}
        for name, pattern in wanted.items():
            shape = self.get_parameter(name).shape
            for key, tensor in stored.items():
                fits = tensor.shape[1:] == shape[1:] and (tensor.shape == shape or name == "bias")
                if fits and "lm_predictions" not in key and re.search(f"{pattern}$", key):
                    found.setdefault(name, tensor)
        whole = {"dense.weight", "norm.weight", "bias"} <= found.keys()  # ModernBERT has no other biases
        return found if whole and len(found["bias"]) <= len(self.bias) else None

    def forward(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (M, V) of states (M, D)."""
        return F.linear(self.norm(F.gelu(self.dense(states))), embeddings, self.bias)


_ENDS = ("weight", "bias")


class BinaryHead(nn.Module):
    """States (..., D) to logits (...), by a layer and a number, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.out = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(F.gelu(self.dense(states))).squeeze(-1)


class HiddenFrames(nn.Module):
    """The frames that are hidden, and the embedding that stands in their places.

    Args:
        width: numbers of a frame's embedding.
        share: share of an item's frames that is hidden; one at least where there are two.
    """

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share, self.embedding = share, nn.Parameter(torch.randn(width) * 0.02)

    def draw(self, mask: Tensor) -> Tensor:
        """Hidden places (B, F) bool among the real ones of mask (B, F); a share of no whole number is drawn."""
        chances = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, 2.0)
        counts = mask.sum(1, keepdim=True)  # (B, 1)
        wanted = (self.share * counts + torch.rand(len(mask), 1, device=mask.device)).long()
        wanted = torch.where(counts > 1, wanted.clamp(min=1), wanted)
        return (chances.argsort(1).argsort(1) < wanted) & (mask != 0)


class Generator(nn.Module):
    """A shallow copy of an encoder, and its head over the vocabulary, for replaced token detection."""

    def __init__(self, encoder: nn.Module, depth: float) -> None:
        super().__init__()
        self.encoder = shallow_copy(encoder, depth)
        self.head = MaskedTokenHead(self.encoder)


def shallow_copy(encoder: nn.Module, depth: float) -> nn.Module:
    """A copy of an encoder's embeddings and its lowest layers, a share `depth` of them, weights included.

    Raises:
        Fb3Error: this family's layers cannot be left out.
    """
    copy = deepcopy(encoder)
    layers = max(1, round(depth * copy.config.num_hidden_layers))
    stack = _module_list(copy)
    if stack is not None and len(stack) > layers:
        del stack[layers:]
    copy.config.num_hidden_layers = layers
    try:
        ids = torch.full((1, 4), 1, device=word_embeddings(copy).device)
        with torch.no_grad():
            copy.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # the encoder's own code may raise anything
        raise Fb3Error(
            f"pretrain.objectives: rtd cannot make a generator of {layers} layers from {type(encoder).__name__} "
            f"({one_line(error)}); set generator_depth to 1, or take mlm"
        ) from None
    return copy.train(encoder.training)


def _module_list(encoder: nn.Module) -> nn.ModuleList | None:
    """The list that holds the encoder's layers."""
    layers = layer_stack(encoder)
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return next((each for each in lists if layers and len(each) == len(layers) and each[0] is layers[0]), None)


def stored_heads(settings: ModelSettings) -> dict[str, Tensor]:
    """The tensors of a backbone's model.safetensors that may be a head's: all but an encoder's layers and embeddings.

    A backbone without such a file, as DeBERTa-v3's on the hub, gives none.
    """
    source = find_backbone(settings.backbone)
    file = Path(source.name) / WEIGHTS if source.is_folder else None
    if file is None:
        options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(source.name, WEIGHTS, local_files_only=source.local, **options)
        file = Path(found) if found else None
    if file is None or not file.is_file():
        return {}
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in filter(re.compile(_HEAD).search, stored.keys())}
