"""Noise on the word embeddings (after He et al. 2020, arXiv:2006.03654, section 3.4).

Cost: next to nothing.
"""

import torch
from torch import Tensor, nn

from fb3.recipe.tricks import NoiseSettings
from fb3.tasks.base import StepOutput
from fb3.training.tricks.trick import Backward, Step, Trick


class EmbeddingNoise(Trick):
    """Adds Gaussian noise to the embeddings of a batch's tokens, in training only."""

    settings: NoiseSettings

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        handle = step.scorer.encoder.get_input_embeddings().register_forward_hook(self._add)
        try:
            return backward()
        finally:
            handle.remove()

    def _add(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return output + self.settings.scale * output.detach().std() * torch.randn_like(output)  # (B, T, D)
