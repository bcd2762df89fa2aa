"""AWP: adversarial weight perturbation (Wu et al. 2020, arXiv:2004.05884), as the field uses it on encoders.

Cost: from `from_epoch` on one more forward and backward pass a step; memory of a copy of the encoder's matrices.
"""

import torch
from torch import nn

from fb3.recipe.tricks import AwpSettings
from fb3.tasks.base import StepOutput
from fb3.training.tricks.perturbation import direction, restored
from fb3.training.tricks.trick import Backward, Step, Trick


class AWP(Trick):
    """Moves each weight matrix along its gradient, by a share of its norm, no weight by more than a share of itself."""

    settings: AwpSettings

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        out = backward()
        if not self._begun(step):
            return out
        matrices = [p for p in step.scorer.encoder.parameters() if p.grad is not None and p.ndim > 1]
        with restored(*matrices):
            for matrix in matrices:
                self._move(matrix)
            if self.settings.form == "perturb_first":
                for parameter in step.scorer.parameters():
                    parameter.grad = None
            backward()
        return out

    def _begun(self, step: Step) -> bool:
        score, wanted = step.score, self.settings.from_score
        good = wanted is None or (
            score is not None and (score.overall <= wanted if score.lower_is_better else score.overall >= wanted)
        )
        return step.epoch >= self.settings.from_epoch and good

    @torch.no_grad()
    def _move(self, matrix: nn.Parameter) -> None:
        norm = matrix.norm()  # stays a tensor: a number would make each matrix wait for the device
        wide = norm if norm.is_mps else norm.double()  # double, as Python multiplies numbers; MPS has none
        move = direction(matrix.grad, (self.settings.rate * wide).to(norm.dtype))
        bound = self.settings.epsilon * matrix.abs()
        matrix.add_(torch.minimum(torch.maximum(move, -bound), bound))
