"""The model that pretraining trains: an encoder and the objectives' heads; and its loss for the loop."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.pretraining.encodings import Encodings, Learned
from fb3.recipe.pretraining import PretrainingSettings
from fb3.tasks.base import StepOutput


class PretrainingModel(nn.Module):
    """An encoder and its objectives. All of them run within `forward`, where several processes follow gradients.

    Args:
        encoder: a transformers encoder.
        objectives: by kind; see `build_objectives`.
        frames: embeddings of the frames beside the texts; none: there are none.
    """

    def __init__(self, encoder: nn.Module, objectives: nn.ModuleDict, frames: FrameEmbeddings | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.objectives = objectives
        self.frames = frames

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Learned]:
        """Each objective's loss and measures for a batch of `PretrainingTexts`, by kind."""
        hides = self.objectives["mfm"].hides if "mfm" in self.objectives else None
        encodings = Encodings(self.encoder, batch, self.frames, hides)
        return {kind: objective(encodings) for kind, objective in self.objectives.items()}

    def towers(self) -> dict[str, nn.Module]:
        """The modules with an encoder, by the prefix of their parameters' names: also a generator's."""
        found = {"": self}
        for kind, objective in self.objectives.items():
            if generator := getattr(objective, "generator", None):
                found[f"objectives.{kind}.generator."] = generator
        return found


class PretrainingTask:
    """The weighted sum of the objectives, as the training loop asks for it; it has no weights and no memory."""

    def __init__(self, settings: PretrainingSettings) -> None:
        self.weights = {each.kind: each.weight for each in settings.objectives}

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> StepOutput:
        """The loss of a batch; the log's terms where there are several objectives."""
        losses = {kind: learned.loss for kind, learned in model(batch).items()}
        total = torch.stack([self.weights[kind] * loss for kind, loss in losses.items()]).sum()
        terms = {kind: loss.detach() for kind, loss in losses.items()} if len(losses) > 1 else {}
        return StepOutput(total, terms)

    def parameters(self) -> Iterable[nn.Parameter]:
        return ()

    def to(self, device: torch.device) -> "PretrainingTask":
        return self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
