"""Objectives: what an encoder learns without scores. Each is one class; a table names them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fb3.data.masking import IGNORED
from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.models.pretraining_heads import BinaryHead, Generator, MaskedTokenHead, word_embeddings
from fb3.pretraining.contrast import info_nce
from fb3.pretraining.encodings import Encodings, Learned
from fb3.pretraining.every_process import of_every_process
from fb3.pretraining.frame_objectives import Itc, Itm, Mfm
from fb3.recipe.pretraining import ObjectiveSettings, OrderSettings, RtdSettings, SimcseSettings


class Mlm(nn.Module):
    """Masked language modelling: cross-entropy at hidden places (Devlin et al. 2018, arXiv:1810.04805).

    The head reads the hidden places alone, 15 % of the tokens: its logits are the largest tensor of a step.
    """

    def __init__(self, settings: ObjectiveSettings, encoder: nn.Module) -> None:
        super().__init__()
        self.head = MaskedTokenHead(encoder)

    def forward(self, encodings: Encodings) -> Learned:
        logits = self.head(encodings.hidden[encodings.places], word_embeddings(encodings.encoder))
        return _guesses(logits, encodings, "mlm", not self.training)


class Rtd(nn.Module):
    """Replaced token detection: which tokens are a generator's (Clark et al. 2020, arXiv:2003.10555).

    The generator learns as in mlm, not from the discriminator: its guesses are drawn, and carry no gradient. It reads
    texts alone, also where the encoder has frames beside them.
    """

    def __init__(self, settings: RtdSettings, encoder: nn.Module) -> None:
        super().__init__()
        self.generator = Generator(encoder, settings.generator_depth)
        self.head = BinaryHead(encoder.config.hidden_size)
        self.weight = settings.discriminator_weight

    def forward(self, encodings: Encodings) -> Learned:
        generator, places = self.generator, encodings.places
        states = Encodings(generator.encoder, encodings.batch).hidden[places]
        logits = generator.head(states, word_embeddings(generator.encoder))
        guessed = _guesses(logits, encodings, "generator", not self.training)
        ids = encodings.plain_ids.clone()
        ids[places] = drawn(logits.detach().float())
        wrong = (ids != encodings.plain_ids).float()
        real = encodings.mask.float()
        states = encodings.encode(ids)
        with torch.autocast(real.device.type, enabled=False):
            logits = self.head(states)  # (B, T)
            losses = F.binary_cross_entropy_with_logits(logits, wrong, reduction="none") * real
            loss = (losses.sum(1) / real.sum(1)).mean()
        found = ((logits > 0).float() * wrong * real).sum(), (wrong * real).sum()
        measures = {"rtd": (losses.sum(), real.sum()), "rtd_found": found}
        return Learned(guessed.loss + self.weight * loss, guessed.measures | measures)


class Simcse(nn.Module):
    """Two dropout masks of a text against other texts: InfoNCE on cosines (Gao et al. 2021, arXiv:2104.08821).

    Texts of one group, such as essays on one prompt or windows of one text, are alike without being the same: they are
    left out of each other's negatives. In training the other texts are those of all processes. In validation too the
    passes keep their dropout, without which both are equal.
    """

    def __init__(self, settings: SimcseSettings, encoder: nn.Module) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.head = mlp if settings.head == "mlp" else nn.Identity()
        self.temperature, self.pooling = settings.temperature, settings.pooling

    def forward(self, encodings: Encodings) -> Learned:
        was_training = encodings.encoder.training
        measures = {}
        if not was_training:
            measures = self._uniformity(self._vectors(encodings.plain, encodings.mask))
        encodings.encoder.train()
        ids = encodings.plain_ids if "labels" in encodings.batch else encodings.batch["input_ids"]
        first = encodings.plain if was_training else encodings.encode(ids)
        one, two = (self._vectors(states, encodings.mask) for states in (first, encodings.encode(ids)))
        encodings.encoder.train(was_training)
        group, begin, others = encodings.batch["group"], 0, two
        if was_training:  # validation is each process's own, of as many texts as it has
            (others, begin), (group, _) = of_every_process(two), of_every_process(group)
        losses = info_nce(one, others, group, self.temperature, begin)
        count = torch.tensor(float(len(losses)), device=losses.device)
        apart = (F.normalize(one, dim=-1) - F.normalize(two, dim=-1)).square().sum(-1)
        measures |= {"simcse": (losses.detach().sum(), count), "alignment": (apart.detach().sum(), count)}
        return Learned(losses.mean(), measures)

    def _vectors(self, states: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            real = mask[..., None].float()
            mean = (states * real).sum(1) / real.sum(1)
            return self.head(mean if self.pooling == "mean" else states[:, 0])  # (B, D)

    def _uniformity(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Gaussian potential of all pairs (Wang & Isola 2020, arXiv:2005.10242), before its logarithm."""
        vectors = F.normalize(vectors, dim=-1)
        apart = torch.pdist(vectors).square()
        return {"uniformity": ((-2.0 * apart).exp().sum(), torch.tensor(float(len(apart)), device=vectors.device))}


class Order(nn.Module):
    """Whether two segments stand in their order, or belong together (Lan et al. 2019, arXiv:1909.11942)."""

    def __init__(self, settings: OrderSettings, encoder: nn.Module) -> None:
        super().__init__()
        self.head = BinaryHead(encoder.config.hidden_size)

    def forward(self, encodings: Encodings) -> Learned:
        right, states = encodings.batch["order"], encodings.hidden[:, 0]
        known = (right != IGNORED).float()
        with torch.autocast(states.device.type, enabled=False):
            logits = self.head(states)
            losses = F.binary_cross_entropy_with_logits(logits, right.clamp(min=0).float(), reduction="none") * known
        correct = ((logits > 0).long() == right).float()
        return Learned(
            losses.mean(), {"order": (losses.sum(), known.sum()), "order_accuracy": (correct.sum(), known.sum())}
        )


OBJECTIVES: dict[str, Any] = {
    "mlm": Mlm,
    "simcse": Simcse,
    "rtd": Rtd,
    "order": Order,
    "mfm": Mfm,
    "itm": Itm,
    "itc": Itc,
}


def build_objectives(
    settings: tuple[ObjectiveSettings, ...], encoder: nn.Module, frames: FrameEmbeddings | None = None
) -> nn.ModuleDict:
    """The objectives of a recipe by kind, in its order, but itc before itm, which draws by its likeness.

    Some read the embeddings of frames too.
    """
    ordered = sorted(settings, key=lambda each: each.kind != "itc")
    return nn.ModuleDict(
        {each.kind: OBJECTIVES[each.kind](each, encoder, *([frames] if each.of_frames else [])) for each in ordered}
    )


def drawn(logits: Tensor) -> Tensor:
    """A token drawn from each row of logits (M, V), by their softmax: (M,)."""
    if not len(logits):
        return logits.new_zeros(0, dtype=torch.long)
    return torch.multinomial(logits.softmax(-1), 1).squeeze(1)


def _guesses(logits: Tensor, encodings: Encodings, name: str, measured: bool) -> Learned:
    """Cross-entropy of logits (M, V) at the M hidden places: each row of the batch weighs the same."""
    places = encodings.places
    truth, counts = encodings.batch["labels"][places], places.sum(1)
    losses = F.cross_entropy(logits.float(), truth, reduction="none")  # (M,)
    per_row = counts[places.nonzero()[:, 0]]
    loss = (losses / per_row).sum() / len(places)
    if not measured:
        return Learned(loss, {})
    count, right = counts.sum().float(), (logits.argmax(-1) == truth).float().sum()
    return Learned(loss, {name: (losses.sum(), count), f"{name}_accuracy": (right, count)})
