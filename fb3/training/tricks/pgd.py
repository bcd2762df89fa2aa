"""PGD: adversarial training in several projected steps (Madry et al. 2017, arXiv:1706.06083).

Cost: `steps` more forward and backward passes; memory of a copy of the embeddings and of one of all gradients.
"""

import torch
from torch import Tensor

from fb3.recipe.tricks import PgdSettings
from fb3.tasks.base import StepOutput
from fb3.training.tricks.perturbation import direction, restored, word_embeddings
from fb3.training.tricks.trick import Backward, Step, Trick


class PGD(Trick):
    """Adds the gradient at embeddings moved k times by `alpha` along the gradient, within `epsilon` of the start."""

    settings: PgdSettings

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        out = backward()
        weight = word_embeddings(step, "pgd")
        trained = [p for p in step.scorer.parameters() if p.requires_grad]
        plain = [p.grad for p in trained]
        start = weight.detach().clone()
        with restored(weight):
            for number in range(self.settings.steps):
                with torch.no_grad():
                    moved = weight + direction(weight.grad, self.settings.alpha)
                    weight.copy_(start + self._projected(moved - start))
                last = number == self.settings.steps - 1
                for parameter, gradient in zip(trained, plain, strict=True):
                    parameter.grad = gradient if last else None  # gradients in between only show the way
                backward()
        return out

    def _projected(self, move: Tensor) -> Tensor:
        norm = move.norm()
        return move * torch.where(norm <= self.settings.epsilon, 1.0, self.settings.epsilon / norm)
