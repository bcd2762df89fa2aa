"""FGM: adversarial training on the word embeddings (Miyato et al. 2016, arXiv:1605.07725).

Cost: one more forward and backward pass a step, twice the time; memory of one copy of the embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fb3.errors import Fb3Error
from fb3.recipe.groups import Fgm
from fb3.tasks import StepOutput
from fb3.training.tricks.base import Backward, Step, Trick


class FGM(Trick):
    """Adds the gradient of the batch at embeddings moved by `epsilon` along the gradient's direction.

    Args:
        settings: epsilon, the L2 norm of the move.
    """

    def __init__(self, settings: Fgm) -> None:
        self.epsilon = settings.epsilon

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        out = backward()
        with self.perturbed(step):
            backward()
        return out

    @contextmanager
    def perturbed(self, step: Step) -> Iterator[None]:
        """The embeddings moved, and put back bit for bit.

        Raises:
            Fb3Error: they have no gradient, so that nothing would be perturbed.
        """
        weight = step.scorer.encoder.get_input_embeddings().weight
        if weight.grad is None:
            raise Fb3Error("tricks: fgm found no gradient on the word embeddings; are they frozen?")
        saved = weight.detach().clone()
        norm = weight.grad.norm()  # of a scaled gradient too: the direction is all that counts
        # A gradient of 0 has no direction, one that overflowed is a step that the scaler skips: both move nothing.
        scale = torch.where(torch.isfinite(norm) & (norm > 0), self.epsilon / norm, 0.0)
        with torch.no_grad():
            weight.add_(torch.nan_to_num(weight.grad, 0.0, 0.0, 0.0) * scale)
        try:
            yield
        finally:
            with torch.no_grad():
                weight.copy_(saved)
