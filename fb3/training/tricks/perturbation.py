"""Moves parameters along their gradient for adversarial tricks, and restores them bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fb3.errors import Fb3Error
from fb3.training.tricks.trick import Step


def word_embeddings(step: Step, trick: str) -> nn.Parameter:
    """The embedding matrix; an Fb3Error where it has no gradient, because nothing would be perturbed."""
    weight = step.scorer.encoder.get_input_embeddings().weight
    if weight.grad is None:
        raise Fb3Error(f"tricks: {trick} found no gradient on the word embeddings; are they frozen?")
    return weight


@torch.no_grad()
def direction(gradient: Tensor, length: float | Tensor) -> Tensor:
    """The gradient's direction, `length` long.

    Gives 0 for a gradient of 0, which has no direction, and for one that overflowed, whose step fp16's scaler skips.
    The gradient of a scaled loss serves too, since only the direction counts.
    """
    norm = gradient.norm()
    scale = torch.where(torch.isfinite(norm) & (norm > 0), norm.reciprocal() * length, 0.0)
    return torch.nan_to_num(gradient, 0.0, 0.0, 0.0) * scale


@contextmanager
def restored(*parameters: nn.Parameter) -> Iterator[None]:
    """Restores the parameters bit for bit at the end, whatever happens."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
