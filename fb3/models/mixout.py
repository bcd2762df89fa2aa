"""Mixout: dropout toward the pretrained weights instead of zero (Lee et al. 2020, arXiv:1909.11299).

Cost: a copy of the mixed matrices, in training one more of each as long as a batch's graph lives, and a random mask for
each weight; nothing at inference, where the layers are plain.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from fb3.errors import Fb3Error
from fb3.models.layer_stack import layer_stack
from fb3.recipe.model import ModelSettings


def mixed(weight: Tensor, start: Tensor, probability: float) -> Tensor:
    """(mask · start + (1 − mask) · weight − p · start) / (1 − p), the mask 1 with probability p; one shape throughout.

    This equals start + (1 − mask) · (weight − start) / (1 − p): dropout on the difference from the start.
    """
    return start + F.dropout(weight - start, probability)


class MixedLinear(nn.Linear):
    """A linear layer whose weights are mixed with their start values in training; `mix_out` puts it in place."""

    # Not a buffer: each forward pass of several processes would broadcast it, and averaging would copy it at each step.
    start: Tensor
    probability: float

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MixedLinear":
        """Moves `start` along to another device or type."""
        super()._apply(fn, recurse)
        self.start = fn(self.start)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return super().forward(inputs)
        return F.linear(inputs, mixed(self.weight, self.start, self.probability), self.bias)


def mix_out(encoder: nn.Module, settings: ModelSettings) -> None:
    """Mixes the encoder's trained linear layers, in place, except re-initialised ones; an Fb3Error if none is left."""
    if not settings.mixout:
        return
    random = layer_stack(encoder)[-settings.reinit_layers :] if settings.reinit_layers else []
    skipped = {module for layer in random for module in layer.modules()}
    linear = [m for m in encoder.modules() if type(m) is nn.Linear and m.weight.requires_grad and m not in skipped]
    if not linear:
        raise Fb3Error(
            f"model.mixout does nothing: {type(encoder).__name__} has no linear layers that are neither frozen nor "
            "re-initialised; lower model.freeze_layers or reinit_layers, or leave it out"
        )
    for module in linear:
        module.__class__ = MixedLinear  # keeps the names of modules and weights
        module.start = module.weight.detach().clone()
        module.probability = settings.mixout
