"""Scorers of items with frames beside the text: one stream of both, or two streams that attend to each other."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fb3.errors import Fb3Error
from fb3.models.frame_embeddings import FrameEmbeddings, with_frames
from fb3.models.heads import LinearHead
from fb3.models.poolings.pooling import masked_mean
from fb3.models.scorer import Scorer
from fb3.models.towers import Tower
from fb3.recipe.frames import DualStreamSettings, SingleStreamSettings


class SingleStreamScorer(Scorer):
    """Frames among the tokens of the text, through all layers of the encoder; the pooling reads the states of both.

    After the single-stream models of the 2022 WeChat Big Data Challenge, and VisualBERT (Li et al. 2019,
    arXiv:1908.03557).
    """

    of_tokens_alone = False

    def __init__(
        self, tower: Tower, frames: FrameEmbeddings, settings: SingleStreamSettings, beside: nn.Module, head: LinearHead
    ) -> None:
        super().__init__(tower, beside, head)
        self.frames, self.modality_dropout = frames, settings.modality_dropout

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors (B, D)."""
        batch = drop_modalities(batch, self.modality_dropout if self.training else 0.0)
        words = self.encoder.get_input_embeddings()(batch["input_ids"])  # (B, T, D)
        seen = batch["frame_mask"]
        embedded = self.frames(self.frames.vectors(batch["frames"], seen))
        packed, mask = with_frames(words, batch["attention_mask"], embedded, seen)
        out = self.encoder(inputs_embeds=packed, attention_mask=mask, **self._arguments)
        with torch.autocast(mask.device.type, enabled=False):
            return self.pooling(self.read(out), self.pooling.token_weights({"attention_mask": mask}))


class DualStreamScorer(Scorer):
    """A transformer over the frames beside the text's encoder, and attention between the two, both ways.

    The vectors of each stream alone stand beside the joined ones, so that an item that lacks one of them still has the
    other's. After LXMERT (Tan & Bansal 2019, arXiv:1908.07490).
    """

    of_tokens_alone = False

    def __init__(
        self, tower: Tower, frames: FrameEmbeddings, settings: DualStreamSettings, beside: nn.Module, head: LinearHead
    ) -> None:
        super().__init__(tower, beside, head)
        hidden = tower.encoder.config.hidden_size
        self.frames, self.modality_dropout = frames, settings.modality_dropout
        self.start = nn.Embedding(1, hidden)  # before the frames: attention needs something to see
        layer = nn.TransformerEncoderLayer(**_sizes(hidden, settings))
        self.over_frames = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.to_text, self.to_frames = (
            nn.TransformerDecoder(nn.TransformerDecoderLayer(**_sizes(hidden, settings)), settings.cross_layers)
            for _ in range(2)
        )

    @staticmethod
    def width(pooled: int, hidden: int) -> int:
        """The width of the joined vector: the text's, the frames', and both after the attention."""
        return pooled + 3 * hidden

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors (B, D + 3 H)."""
        batch = drop_modalities(batch, self.modality_dropout if self.training else 0.0)
        mask, seen = batch["attention_mask"], batch["frame_mask"]
        out, vectors = self.encode(batch["input_ids"], mask), self.frames.vectors(batch["frames"], seen)
        with torch.autocast(mask.device.type, enabled=False):
            text = out.last_hidden_state.float()  # (B, T, H)
            frames = torch.cat([self.start.weight.expand(len(mask), 1, -1), self.frames(vectors)], 1)
            seen = torch.cat([seen.new_ones(len(mask), 1), seen], 1)  # (B, 1 + F)
            no_text, no_frame = mask == 0, seen == 0
            frames = self.over_frames(frames, src_key_padding_mask=no_frame)
            pads = {"tgt_key_padding_mask": no_frame, "memory_key_padding_mask": no_text}
            asked = self.to_text(frames, text, **pads)
            pads = {"tgt_key_padding_mask": no_text, "memory_key_padding_mask": no_frame}
            shown = self.to_frames(text, frames, **pads)
            alone = self.pooling(self.read(out), self.pooling.token_weights(batch))
            return torch.cat(
                [alone, masked_mean(frames, seen), masked_mean(asked, seen), masked_mean(shown, mask)], dim=-1
            )


def drop_modalities(batch: Mapping[str, Tensor], probability: float) -> Mapping[str, Tensor]:
    """Takes the frames from some items of a batch that have any, and the text from as many others.

    A model learns from the modality that tells more at first, and the other one's layers stay weak (Wang et al. 2020,
    arXiv:1905.12681). Where one is missing, the other has to tell all. A text that is taken leaves its first and its
    last token, [CLS] and [SEP].

    Args:
        batch: a batch of `collate`.
        probability: chance of an item with frames to lose one of the two, each as often as the other.
    """
    if not probability:
        return batch
    ids, mask, seen = batch["input_ids"], batch["attention_mask"], batch["frame_mask"]
    drawn = torch.rand(len(mask), 1, device=mask.device)  # (B, 1)
    no_text = (drawn < probability / 2) & seen.any(1, keepdim=True) & (mask.sum(1, keepdim=True) > 1)
    no_frames = (drawn >= probability / 2) & (drawn < probability)
    place = torch.arange(mask.shape[1], device=mask.device)[None]  # (1, T)
    last = ids.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0))
    return {
        **batch,
        "input_ids": torch.where(no_text & (place == 1), last, ids),
        "attention_mask": mask.masked_fill(no_text & (place > 1), 0),
        "frame_mask": seen.masked_fill(no_frames, 0),
    }


def _sizes(hidden: int, settings: DualStreamSettings) -> dict[str, object]:
    heads = settings.heads or max(1, hidden // 64)
    if hidden % heads:
        raise Fb3Error(f"model.frames.heads={heads}: the encoder's width {hidden} does not divide by it; give another")
    return {
        "d_model": hidden,
        "nhead": heads,
        "dim_feedforward": 4 * hidden,
        "dropout": settings.dropout,
        "activation": "gelu",
        "batch_first": True,
        "norm_first": True,
    }
