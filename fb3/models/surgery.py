"""Changes that a recipe makes to a pretrained encoder before training, in place."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fb3.errors import Fb3Error
from fb3.models.layer_stack import is_bias, is_norm, layer_stack, parameters_by_depth
from fb3.recipe.model import ModelSettings

_CONVOLUTION_STD = 0.02  # ConvBERT's initializer_range


def operate(encoder: nn.Module, settings: ModelSettings) -> None:
    """Removes an unused pooler, freezes, drops layers, turns on checkpointing: changes that a loaded fold needs too.

    Raises:
        Fb3Error: the encoder cannot do it.
    """
    name = type(encoder).__name__
    if settings.pooling.kind == "pooler":
        if getattr(encoder, "pooler", None) is None:
            raise Fb3Error(f"model.pooling.kind=pooler: {name} has no pooler; take cls, mean or attention")
    elif getattr(encoder, "pooler", None) is not None:
        encoder.pooler = nn.Identity()  # unused, it gets no gradient; None would break families that call it
    if hasattr(settings.pooling, "layers") and encoder.config.model_type == "funnel":
        raise Fb3Error(f"model.pooling.kind={settings.pooling.kind}: Funnel's layers differ in length; take mean")
    if settings.freeze_embeddings or settings.freeze_layers:
        _freeze(encoder, settings)
    if settings.reinit_layers and settings.reinit_layers + settings.freeze_layers > len(layer_stack(encoder)):
        raise Fb3Error("model.reinit_layers and freeze_layers meet: a random layer would stay so; lower one of them")
    if settings.layer_drop:
        _drop_layers(_some_layers(encoder, 1, "layer_drop"), settings.layer_drop)
    if settings.gradient_checkpointing and not getattr(encoder, "supports_gradient_checkpointing", False):
        raise Fb3Error(f"model.gradient_checkpointing: {name} cannot do it; set it to false")
    if settings.gradient_checkpointing is True:
        recompute_activations(encoder)


def _freeze(encoder: nn.Module, settings: ModelSettings) -> None:
    _some_layers(encoder, settings.freeze_layers, "freeze_layers")
    embeddings, *layers = parameters_by_depth(encoder)
    for part in [embeddings] * settings.freeze_embeddings + layers[: settings.freeze_layers]:
        for parameter in part:
            parameter.requires_grad_(False)


def recompute_activations(encoder: nn.Module) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174), from the next forward pass on."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # late releases of transformers 5 want a name that early ones lack
        encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def reinitialise(encoder: nn.Module, layers: int) -> None:
    """Starts the top layers at random, by the encoder's own rule (Zhang et al. 2020, arXiv:2006.05987).

    Raises:
        Fb3Error: the encoder's layers are unknown, shared, or fewer than that.
    """
    for layer in reversed(_some_layers(encoder, layers, "reinit_layers")[-layers:]):
        for module in reversed(list(layer.modules())):  # a parent may overrule its children
            module._is_hf_initialized = False  # from_pretrained marks weights, and _init_weights skips marked ones
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False
            _start(module)
            encoder._init_weights(module)


def _start(module: nn.Module) -> None:
    """Resets norms, biases and convolutions, which `_init_weights` of some families and versions skips."""
    for name, parameter in module.named_parameters(recurse=False):
        if is_bias(name):
            nn.init.zeros_(parameter)
        elif is_norm(module):
            nn.init.ones_(parameter)
        elif isinstance(module, nn.Conv1d):
            nn.init.normal_(parameter, std=_CONVOLUTION_STD)


def _some_layers(encoder: nn.Module, count: int, key: str) -> list[nn.Module]:
    """The encoder's layers, checked to be at least `count`; none where `count` is 0."""
    if not count:
        return []
    layers = layer_stack(encoder)
    if encoder.config.model_type == "albert":
        raise Fb3Error(f"model.{key}: ALBERT shares one layer, so it holds for all or none; set it to 0")
    if key == "layer_drop" and any(isinstance(layer, nn.ModuleList) for layer in layers):
        raise Fb3Error(f"model.layer_drop: {type(encoder).__name__} has blocks of layers, which cannot be passed over")
    if count > len(layers):
        raise Fb3Error(f"model.{key}={count}: {type(encoder).__name__} has {len(layers)} layers")
    return layers


def _drop_layers(layers: list[nn.Module], top: float) -> None:
    """LayerDrop (Fan et al. 2019, arXiv:1909.11556), likelier with depth: a dropped layer returns its input."""
    for number, layer in enumerate(layers, 1):
        layer.__class__ = type(type(layer).__name__, (_DropLayer, type(layer)), {})
        layer.drop_probability = top * number / len(layers)


class _DropLayer:
    """A mixin before a layer's class: in training it skips the layer, with a probability, for the whole batch.

    Not a forward hook: some versions of transformers record the hidden states within `forward`, before hooks run.
    """

    drop_probability: float

    def forward(self, *inputs: Any, **named: Any) -> Tensor | tuple | dict:
        output = super().forward(*inputs, **named)
        if not self.training or torch.rand(()) >= self.drop_probability:
            return output
        if isinstance(output, dict):  # SqueezeBERT's
            return {**output, next(iter(output)): inputs[0]}
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
