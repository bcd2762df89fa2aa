"""DeBERTa-v2 and v3 (He et al. 2020, arXiv:2006.03654; 2021, arXiv:2111.09543) with `disentangled_attention`.

The numbers are those of transformers' eager attention, at less cost: position embeddings are projected once a forward
pass and not once an essay, for inference once for all batches (`precompute_position_tables`); no index map or mask of
(T, T) is built; and the hidden states of layers are kept only where somebody reads them.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fb3.models.kernels.disentangled_attention import (
    Tables,
    disentangled_attention,
    make_log_bucket_position,
    rows_by_distance,
)
from fb3.system.progress import say

try:
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention
except ImportError:  # another version of transformers names them differently: no module is an instance then
    DebertaV2Encoder = DisentangledSelfAttention = nn.Module

_ARGUMENTS = (  # parameters of the eager forward that the fused one replaces; other versions may differ
    "self",
    "hidden_states",
    "attention_mask",
    "output_attentions",
    "query_states",
    "relative_pos",
    "rel_embeddings",
)


def use_fused_disentangled_attention(encoder: nn.Module) -> bool:
    """Switches a DeBERTa-v2 encoder to the fused attention, in place; names and weights stay.

    Returns False, with nothing changed, for another encoder, or a variant that it cannot compute, which is said.
    """
    if getattr(encoder.config, "model_type", None) != "deberta-v2":
        return False
    if type(encoder.encoder) is FusedStack:
        return True
    if obstacle := _obstacle(encoder):
        say(f"{type(encoder).__name__}: transformers' own, slower attention is taken ({obstacle})")
        return False
    stack = encoder.encoder
    stack.__class__, stack.wants_states = FusedStack, True
    for layer in stack.layer:
        attention = layer.attention.self
        attention.__class__ = FusedAttention
        for name in ("position_keys", "position_queries"):
            attention.register_buffer(name, None, persistent=False)
    if not getattr(encoder, "z_steps", 0) > 1:
        encoder.register_forward_pre_hook(_note_wanted_states, with_kwargs=True)
    return True


@torch.inference_mode()
def precompute_position_tables(encoder: nn.Module) -> None:
    """Projects a fused DeBERTa's position embeddings once for all batches, in place; other encoders stay as they are.

    The tables depend on weights alone: call it when these are final, under the autocast that inference will use. Tables
    move with the encoder to another device or type, are in no checkpoint, and are dropped when it is set to train.
    """
    stack = getattr(encoder, "encoder", None)
    if type(stack) is not FusedStack:
        return
    embeddings = stack.get_rel_embedding()
    for layer in stack.layer:
        attention = layer.attention.self
        attention.position_keys, attention.position_queries = attention.project_positions(embeddings)


@contextmanager
def eager_attention(encoder: nn.Module) -> Iterator[None]:
    """Lets transformers' own attention compute within the context: the fused one cannot be traced for a backend."""
    own = {FusedStack: DebertaV2Encoder, FusedAttention: DisentangledSelfAttention}
    fused = [(module, type(module)) for module in encoder.modules() if type(module) in own]
    for module, kind in fused:
        module.__class__ = own[kind]
    try:
        yield
    finally:
        for module, kind in fused:
            module.__class__ = kind


def _obstacle(encoder: nn.Module) -> str | None:
    """The reason why the fused attention cannot compute a DeBERTa-v2, or none."""
    config = encoder.config
    stack = getattr(encoder, "encoder", None)
    other = "this version of transformers builds it differently"
    if make_log_bucket_position is None or type(stack) is not DebertaV2Encoder:
        return other
    modules = [getattr(getattr(layer, "attention", None), "self", None) for layer in stack.layer]
    if any(type(module) is not DisentangledSelfAttention for module in modules):
        return other
    if tuple(inspect.signature(DisentangledSelfAttention.forward).parameters) != _ARGUMENTS:
        return other
    if not getattr(config, "relative_attention", False):
        return "relative_attention=false"
    kinds = {kind for module in modules for kind in module.pos_att_type}
    if not kinds or not kinds <= {"c2p", "p2c"}:
        return f"pos_att_type={config.pos_att_type}; want c2p, p2c or both"
    if getattr(config, "talking_head", False):
        return "talking_head"
    return None


def _note_wanted_states(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Notes before a forward pass whether the caller wants all states: the model asks its stack for them anyway."""
    wanted = kwargs.get("output_hidden_states")
    model.encoder.wants_states = len(args) > 1 or (model.config.output_hidden_states if wanted is None else wanted)


class FusedStack(DebertaV2Encoder):
    """The layers, without the index map and the mask of (T, T) that transformers builds before them."""

    wants_states: bool

    def get_rel_pos(self, *args: Any, **kwargs: Any) -> None:
        """No index map: `rows_by_distance` finds the tables' rows."""

    def get_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """A mask (B, T) to (B, 1, 1, T), the same for each query: nothing reads a padding token's own state."""
        if attention_mask.dim() > 2:
            return super().get_attention_mask(attention_mask)
        return attention_mask[:, None, None]

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, output_hidden_states: bool = True, **kwargs: Any):
        """Keeps one layer's states at a time unless the caller wants all."""
        every = output_hidden_states and self.wants_states
        out = super().forward(hidden_states, attention_mask, output_hidden_states=every, **kwargs)
        if every or not output_hidden_states:
            return out
        if isinstance(out, tuple):
            return (out[0], (out[0],), *out[1:])
        last = out.last_hidden_state  # the model reads its result from hidden_states[-1]
        return type(out)(last_hidden_state=last, hidden_states=(last,), attentions=out.attentions)


class FusedAttention(DisentangledSelfAttention):
    """The attention of one layer.

    `precompute_position_tables` sets the buffers `position_keys` and `position_queries`, (R, H, D / H) each. While they
    are None, each forward pass projects the embeddings.
    """

    position_keys: Tensor | None
    position_queries: Tensor | None

    def train(self, mode: bool = True) -> "FusedAttention":
        """Drops the precomputed tables before a training: its first step would make them stale."""
        if mode:
            self.position_keys = self.position_queries = None
        return super().train(mode)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States (B, T, D), mask (B, 1, 1, T), position embeddings (R, D) to (B, T, D); any other call runs eagerly."""
        usual = not output_attentions and query_states is None and relative_pos is None
        if not usual or attention_mask.dim() != 4 or attention_mask.shape[1:3] != (1, 1):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        query, key, value = (
            self._heads(project(hidden_states)).transpose(1, 2)  # (B, H, T, D / H), in memory still (B, T, H, D / H)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        tables = self._position_tables(rel_embeddings, query.dtype)
        scale = 1 / math.sqrt(self.attention_head_size * (1 + len(set(self.pos_att_type))))
        span = (self.pos_ebd_size, self.position_buckets, self.max_relative_positions)
        dropout = self.dropout.p if self.training else 0.0
        rows = rows_by_distance(query.shape[2], *span, query.device)
        out = disentangled_attention(query, key, value, tables, rows, attention_mask[:, 0, 0], scale, dropout)
        return out.transpose(1, 2).flatten(2), None

    def _heads(self, states: Tensor) -> Tensor:
        """(..., D) to (..., H, D / H)."""
        return states.unflatten(-1, (self.num_attention_heads, -1))

    def _position_tables(self, embeddings: Tensor, dtype: torch.dtype) -> Tables:
        """The precomputed tables in the queries' type, else tables projected from the position embeddings (R, D)."""
        tables = self.position_keys, self.position_queries
        if all(table is None for table in tables):
            return self.project_positions(self.pos_dropout(embeddings))
        return tuple(None if table is None else table.to(dtype) for table in tables)

    def project_positions(self, embeddings: Tensor) -> Tables:
        """Position embeddings (R, D) to position keys and queries, (R, H, D / H) each; none for an unused kind."""
        shared, rows = self.share_att_key, embeddings[: 2 * self.pos_ebd_size]
        to_keys = self.key_proj if shared else getattr(self, "pos_key_proj", None)
        to_queries = self.query_proj if shared else getattr(self, "pos_query_proj", None)
        return (
            self._heads(to_keys(rows)) if "c2p" in self.pos_att_type else None,
            self._heads(to_queries(rows)) if "p2c" in self.pos_att_type else None,
        )
