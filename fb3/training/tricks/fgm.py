"""FGM: adversarial training on the word embeddings (Miyato et al. 2016, arXiv:1605.07725).

Cost: one more forward and backward pass a step, twice the time; memory of one copy of the embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fb3.recipe.tricks import FgmSettings
from fb3.tasks.base import StepOutput
from fb3.training.tricks.perturbation import direction, restored, word_embeddings
from fb3.training.tricks.trick import Backward, Step, Trick


class FGM(Trick):
    """Adds the gradient of the batch at embeddings moved by `epsilon` along the gradient's direction."""

    settings: FgmSettings

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        out = backward()
        with self.perturbed(step):
            backward()
        return out

    @contextmanager
    def perturbed(self, step: Step) -> Iterator[None]:
        """Moves the embeddings, and restores them bit for bit."""
        weight = word_embeddings(step, "fgm")
        with restored(weight):
            with torch.no_grad():
                weight.add_(direction(weight.grad, self.settings.epsilon))
            yield
