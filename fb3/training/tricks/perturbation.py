"""The parameters as adversarial tricks move them: along the gradient, and back bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fb3.errors import Fb3Error
from fb3.training.tricks.trick import Step


def word_embeddings(step: Step, trick: str) -> nn.Parameter:
    """The embedding matrix, with a gradient.

    Raises:
        Fb3Error: it has none, so that nothing would be perturbed.
    """
    weight = step.scorer.encoder.get_input_embeddings().weight
    if weight.grad is None:
        raise Fb3Error(f"tricks: {trick} found no gradient on the word embeddings; are they frozen?")
    return weight


@torch.no_grad()
def direction(gradient: Tensor, length: float | Tensor) -> Tensor:
    """The gradient's direction, `length` long.

    A gradient of 0 has no direction, one that overflowed is a step that the scaler skips: both give 0. That of a scaled
    loss serves too, since only the direction counts.
    """
    norm = gradient.norm()
    scale = torch.where(torch.isfinite(norm) & (norm > 0), norm.reciprocal() * length, 0.0)
    return torch.nan_to_num(gradient, 0.0, 0.0, 0.0) * scale


@contextmanager
def restored(*parameters: nn.Parameter) -> Iterator[None]:
    """The parameters put back bit for bit at the end, whatever happens."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
