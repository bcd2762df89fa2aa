"""Objectives on items: what a single stream learns from frames beside texts."""

import torch
from torch import Tensor, nn

from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.models.pretraining_heads import HiddenFrames
from fb3.pretraining.contrast import contrast
from fb3.pretraining.encodings import Encodings, Learned
from fb3.pretraining.every_process import of_every_process
from fb3.recipe.pretraining import MfmSettings

_SAME = 0.9999  # cosine above which two frames are one picture


class Mfm(nn.Module):
    """Masked frames: which of the batch's frames is the hidden one (Chen et al. 2020, arXiv:1909.11740).

    UniVL's contrastive form (Luo et al. 2020, arXiv:2002.06353): a hidden frame is told from all real ones of the
    batch, the visible ones of its own item among them; else copying a neighbour would do. The same picture, such as of
    another window of the text or of a film that stands still, is no negative. Targets are raw frames, standardised:
    learned ones could all become equal.
    """

    def __init__(self, settings: MfmSettings, encoder: nn.Module, frames: FrameEmbeddings) -> None:
        super().__init__()
        width, embedded = encoder.config.hidden_size, frames.linear.out_features
        self.hides, self.temperature = HiddenFrames(embedded, settings.share), settings.temperature
        layers = nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, frames.linear.in_features)
        self.head = nn.Sequential(*layers)

    def forward(self, encodings: Encodings) -> Learned:
        places, real = encodings.hidden_frames, encodings.batch["frame_mask"] != 0  # (B, F)
        with torch.autocast(places.device.type, enabled=False):
            guesses = self.head(encodings.both[1][places])  # (M, width)
            frames = encodings.frames.standardised(encodings.batch["frames"])
        candidates, begin = frames[real], 0  # (N, width)
        if self.training:  # validation is each process's own, of as many items as it has
            candidates, begin = of_every_process(candidates)
        own = begin + (real.flatten().cumsum(0) - 1)[places.flatten()]
        found = contrast(guesses, candidates, own, same(frames[places], candidates), self.temperature)
        per_row = places.sum(1)[places.nonzero()[:, 0]]
        loss = (found.losses / per_row).sum() / len(places)
        right, known = (found.right & found.open).float().sum(), found.open.float().sum()
        return Learned(loss, {"mfm": (found.losses.sum(), places.float().sum()), "mfm_accuracy": (right, known)})


def same(one: Tensor, two: Tensor) -> Tensor:
    """Whether frames (M, width) and (N, width) are one picture, (M, N) bool."""
    return nn.functional.normalize(one, dim=-1) @ nn.functional.normalize(two, dim=-1).T > _SAME
