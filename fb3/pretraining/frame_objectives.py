"""Objectives on items: what a single stream learns from frames beside texts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.models.poolings.pooling import masked_mean
from fb3.models.pretraining_heads import BinaryHead, HiddenFrames
from fb3.pretraining.contrast import contrast
from fb3.pretraining.encodings import Encodings, Learned
from fb3.pretraining.every_process import of_every_process
from fb3.recipe.pretraining import TEMPERATURES, ItcSettings, ItmSettings, MfmSettings

_SAME = 0.9999  # cosine above which two frames are one picture
_LEAST = 1e-4  # weight of the least likely negative: all of them may round to 0 (Li et al. 2022, arXiv:2201.12086)


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
        states = encodings.both[1][places]  # (M, D)
        with torch.autocast(places.device.type, enabled=False):
            guesses = self.head(states)  # (M, width)
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
    return F.normalize(one, dim=-1) @ F.normalize(two, dim=-1).T > _SAME


class Itm(nn.Module):
    """Item-text match: whether the frames are the text's own (Chen et al. 2020, arXiv:1909.11740).

    Items with their own frames are read off the pass that mlm and mfm share; the ones with another's frames have a
    pass of their own, as in ALBEF (Li et al. 2021, arXiv:2107.07651). It costs half a pass. In the shared pass their
    hidden tokens and frames could not be guessed, and half of a whole pass would teach mlm and mfm nothing. Both sides
    have hidden tokens and frames, so that these give no hint. Each part of an item takes its own mask along.
    """

    def __init__(self, settings: ItmSettings, encoder: nn.Module, frames: FrameEmbeddings) -> None:
        super().__init__()
        self.head, self.share = BinaryHead(encoder.config.hidden_size), settings.share

    def forward(self, encodings: Encodings) -> Learned:
        batch, seen = encodings.batch, encodings.batch["frame_mask"]
        possible = pairs(seen, batch["group"])  # (B, B)
        rows, others = self.draw(possible, encodings.likeness)
        own = possible.any(1)
        own[rows] = False
        states = encodings.hidden[own, 0]
        if len(rows):
            ids, mask = batch["input_ids"][rows], encodings.mask[rows]
            wrong = encodings.beside(ids, mask, encodings.shown[others], seen[others])[0]
            states = torch.cat([states, wrong[:, 0]])
        truth = torch.arange(len(states), device=states.device) < own.sum()
        with torch.autocast(states.device.type, enabled=False):
            logits = self.head(states)
            losses = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
        right, count = ((logits > 0) == truth).float().sum(), torch.tensor(float(len(truth)), device=states.device)
        return Learned(losses.sum() / len(seen), {"itm": (losses.sum(), count), "itm_accuracy": (right, count)})

    def draw(self, possible: Tensor, likeness: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draws items and for each another one, whose frames it gets.

        Args:
            possible: (B, B), whether an item may get another's frames.
            likeness: (B, B), of texts and frames: likelier ones are drawn more often; none: all alike.

        Returns:
            Both as rows of the batch, (M,).
        """
        fit = possible.any(1)
        chances = torch.rand(len(fit), device=fit.device).masked_fill(~fit, 2.0)
        count = (self.share * fit.sum() + torch.rand((), device=fit.device)).long()
        rows = ((chances.argsort().argsort() < count) & fit).nonzero()[:, 0]
        if not len(rows):
            return rows, rows
        weights = possible[rows].float()
        if likeness is not None:
            likely = likeness[rows].float().masked_fill(~possible[rows], -torch.inf).softmax(1)
            weights = weights * (likely + _LEAST)
        return rows, torch.multinomial(weights, 1)[:, 0]


def pairs(seen: Tensor, group: Tensor) -> Tensor:
    """Pairs of items with frames, of other groups: (B, B) bool. Each row of a batch has a text.

    Args:
        seen: mask of their frames, (B, F).
        group: (B,).
    """
    there = seen.any(1)
    return there[:, None] & there & (group[:, None] != group)


class Itc(nn.Module):
    """Texts and frames, each alone, nearer to their own item's than to others' (Li et al. 2021, arXiv:2107.07651).

    The two passes are the ones of an item without frames, and of an item with an empty text; a vector is the mean of
    a pass's states. In training the other items are those of all processes. itm draws its pairs by their likeness.
    """

    def __init__(self, settings: ItcSettings, encoder: nn.Module, frames: FrameEmbeddings) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.text, self.frames = nn.Linear(width, settings.width), nn.Linear(width, settings.width)
        self.temperature = nn.Parameter(torch.tensor(settings.temperature))

    def forward(self, encodings: Encodings) -> Learned:
        with torch.no_grad():  # a clamp with a gradient would hold it at the bound
            self.temperature.clamp_(*TEMPERATURES)
        group, count = encodings.batch["group"], len(encodings.mask)
        rows = encodings.batch["frame_mask"].any(1).nonzero()[:, 0]
        states, mask, shown, seen = self._passes(encodings, rows)
        with torch.autocast(rows.device.type, enabled=False):
            texts = self.text(masked_mean(states, mask))  # (M, P)
            frames = self.frames(masked_mean(shown, seen))
            alike = F.normalize(texts, dim=-1) @ F.normalize(frames, dim=-1).T / self.temperature
        encodings.likeness = alike.new_zeros(count, count)
        encodings.likeness[rows[:, None], rows] = alike.detach()
        (all_texts, begin), (all_frames, _), (groups, _) = (texts, 0), (frames, 0), (group[rows], 0)
        if self.training:  # validation is each process's own, of as many items as it has
            (all_texts, begin), (all_frames, _), (groups, _) = map(of_every_process, (texts, frames, group[rows]))
        own = begin + torch.arange(len(rows), device=rows.device)
        same = groups[own, None] == groups
        found = [contrast(*each, own, same, self.temperature) for each in ((texts, all_frames), (frames, all_texts))]
        total, known = (sum(each.losses.sum() for each in found) / 2, sum(each.open.float().sum() for each in found))
        right = sum((each.right & each.open).float().sum() for each in found)
        return Learned(total / count, {"itc": (total, known / 2), "itc_accuracy": (right, known)})

    def _passes(self, encodings: Encodings, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States of the texts (M, T, D) and their mask, states of the frames (M, F, D) and theirs, of some items."""
        mask, seen, empty = encodings.mask[rows], encodings.batch["frame_mask"][rows], encodings.batch["empty"][rows]
        if not len(rows):  # an encoder takes no empty batch
            nothing = self.text.weight.new_zeros(0, 1, self.text.in_features)
            return nothing, mask[:, :1], nothing, seen[:, :1]
        states = encodings.encoder(input_ids=encodings.plain_ids[rows], attention_mask=mask).last_hidden_state
        shown = encodings.beside(empty, torch.ones_like(empty), encodings.embedded[rows], seen)[1]
        return states, mask, shown, seen
