"""Gradual unfreezing: layers join the training from the top down (Howard & Ruder 2018, arXiv:1801.06146).

Cost: none; gradients of waiting layers are computed and thrown away.
"""

from fb3.errors import Fb3Error
from fb3.models.layer_stack import depth_of_parameters
from fb3.models.scorer import Scorer
from fb3.recipe.tricks import GradualUnfreezeSettings
from fb3.tasks.base import StepOutput
from fb3.training.tricks.trick import Backward, Step, Trick


class GradualUnfreeze(Trick):
    """Drops the gradients of the encoder's lower layers, fewer and fewer layers, until a share of the run."""

    def __init__(self, settings: GradualUnfreezeSettings, scorer: Scorer) -> None:
        super().__init__(settings, scorer)
        try:
            depths, self.top = depth_of_parameters(scorer.encoder)
        except Fb3Error:
            raise Fb3Error("tricks: gradual_unfreeze does not know this encoder's layers; leave it out") from None
        self.depths = [(p, depths[name]) for name, p in scorer.encoder.named_parameters()]

    def waiting(self, progress: float) -> int:
        """The lowest depth that trains: at first above the top layer, at last 0, the embeddings."""
        return max(0, self.top + 1 - int(progress / self.settings.until * (self.top + 1) + 1e-9))

    def backward(self, step: Step, backward: Backward) -> StepOutput:
        out = backward()
        waiting = self.waiting(step.progress)
        for parameter, depth in self.depths:
            if depth < waiting:
                parameter.grad = None  # not zeros, with which the momentum would still move it
        return out
