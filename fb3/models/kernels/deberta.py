"""DeBERTa-v2 and v3 (He et al. 2020, arXiv:2006.03654; 2021, arXiv:2111.09543) with `disentangled_attention`.

The same numbers as transformers' eager one, without its waste: the position tables are projected once, not once an
essay (in inference once for all batches), with the scale folded in, so that fp16 cannot overflow; no maps of (T, T) are
built; and the states of layers that nobody reads are not kept.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
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
from fb3.models.kernels.flash_attention import flash_attention, flash_runs, table_scale
from fb3.system.progress import say

try:
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention
except ImportError:  # of another make; then nothing is an instance of these
    DebertaV2Encoder = DisentangledSelfAttention = nn.Module

_ARGUMENTS = (
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

    Returns:
        False where it is another encoder, or one that this cannot run, which is said; then nothing has changed.
    """
    if getattr(encoder.config, "model_type", None) != "deberta-v2":
        return False
    if type(encoder.encoder) is FusedStack:
        return True
    if obstacle := _obstacle(encoder):
        say(f"{type(encoder).__name__}: transformers' own, slower attention is taken ({obstacle})")
        return False
    stack = encoder.encoder
    stack.__class__, stack.kept, stack.wants_states = FusedStack, Kept(), True
    for layer in stack.layer:
        attention = layer.attention.self
        attention.__class__, attention.kept = FusedAttention, Kept()
    if not getattr(encoder, "z_steps", 0) > 1:
        encoder.register_forward_pre_hook(_note_wanted_states, with_kwargs=True)
    return True


@contextmanager
def eager_attention(encoder: nn.Module) -> Iterator[None]:
    """Within it, transformers' own attention computes: the fused one cannot be traced for another library."""
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
    """Why not."""
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
    """Before a forward: whether all layers' states are wanted; the model itself asks its stack for them always."""
    wanted = kwargs.get("output_hidden_states")
    model.encoder.wants_states = len(args) > 1 or (model.config.output_hidden_states if wanted is None else wanted)


class Kept:
    """What is computed from weights alone, kept in inference as long as these are the same.

    Each tensor is known by its memory, which stays alive here, so that no other can take its place, and by torch's
    count of the writes into it. A pass with gradients or in training empties it. Copies start empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[tuple], list[Tensor], Any] | None = None

    def __reduce__(self) -> tuple:
        return Kept, ()

    def clear(self) -> None:
        self._kept = None

    def get(
        self,
        owner: nn.Module,
        weights: Iterable[Tensor],
        compute: Callable[[], Any],
        given: Tensor | None = None,
        scale: float = 1.0,
    ) -> Any:
        """What `compute` makes of the weights, and of what is `given` and the scale where it needs more."""
        if torch.is_grad_enabled() or owner.training:
            self.clear()
            return compute()
        weights = [*weights, given] if isinstance(given, nn.Parameter) else list(weights)
        if any(weight.is_inference() for weight in weights):  # nobody counts the writes into them
            return compute()
        sources = weights if given is None else [*weights, given]
        kind = sources[0].device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        stamp = [autocast, scale, *(_stamp(source) for source in sources)]
        kept = self._kept
        if kept is None or kept[0] != stamp:
            self._kept = kept = stamp, [source.detach() for source in sources], compute()
        return kept[2]


def _stamp(tensor: Tensor) -> tuple:
    writes = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), writes, tensor.dtype, tensor.device, tensor.shape, tensor.stride()


class FusedStack(DebertaV2Encoder):
    """The layers; nothing of (T, T) is built before them."""

    kept: Kept
    wants_states: bool

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedStack":
        self.kept.clear()
        return super()._apply(fn, recurse)

    def get_rel_embedding(self) -> Tensor:
        """(R, D)."""
        norm = self.LayerNorm.parameters() if "layer_norm" in self.norm_rel_ebd else ()
        return self.kept.get(self, [self.rel_embeddings.weight, *norm], super().get_rel_embedding)

    def get_rel_pos(self, *args: Any, **kwargs: Any) -> None:
        """The attention finds the rows itself."""

    def get_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """(B, T) to (B, 1, 1, T): what a padding token sees is of no matter."""
        if attention_mask.dim() > 2:
            return super().get_attention_mask(attention_mask)
        return attention_mask[:, None, None]

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, output_hidden_states: bool = True, **kwargs: Any):
        """Keeps one layer's states at a time where that is enough."""
        every = output_hidden_states and self.wants_states
        out = super().forward(hidden_states, attention_mask, output_hidden_states=every, **kwargs)
        if every or not output_hidden_states:
            return out
        if isinstance(out, tuple):
            return (out[0], (out[0],), *out[1:])
        last = out.last_hidden_state  # the model reads its result from the states
        return type(out)(last_hidden_state=last, hidden_states=(last,), attentions=out.attentions)


class FusedAttention(DisentangledSelfAttention):
    """The attention of one layer."""

    kept: Kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedAttention":
        self.kept.clear()
        return super()._apply(fn, recurse)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States (B, T, D), mask (B, 1, 1, T), position embeddings (R, D) to (B, T, D); what it cannot do, eagerly."""
        usual = not output_attentions and query_states is None and relative_pos is None
        if not usual or attention_mask.dim() != 4 or attention_mask.shape[1:3] != (1, 1):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        query, key, value = (
            self._heads(project(hidden_states)) for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        scale = 1 / math.sqrt(self.attention_head_size * (1 + len(set(self.pos_att_type))))
        span = (self.pos_ebd_size, self.position_buckets, self.max_relative_positions)
        dropout = self.dropout.p if self.training else 0.0
        if flash_runs(query, ("c2p" in self.pos_att_type, "p2c" in self.pos_att_type), scale, dropout):
            tables = self._kept_tables(rel_embeddings, table_scale(query.dtype, scale))
            out = flash_attention(query, key, value, tables, span, attention_mask, scale, dropout)
            if out is not None:
                return out, None
        tables = self._kept_tables(rel_embeddings, scale)
        rows = rows_by_distance(query.shape[2], *span, query.device)
        out = disentangled_attention(query, key, value, tables, rows, attention_mask[:, 0, 0], scale, dropout)
        return out.transpose(1, 2).flatten(2), None

    def _heads(self, states: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, D / H), laid out as before."""
        return states.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

    def _position_projections(self) -> tuple[nn.Module | None, nn.Module | None]:
        """To keys (content to position), to queries (position to content)."""
        shared = self.share_att_key
        return (
            (self.key_proj if shared else self.pos_key_proj) if "c2p" in self.pos_att_type else None,
            (self.query_proj if shared else self.pos_query_proj) if "p2c" in self.pos_att_type else None,
        )

    def _kept_tables(self, embeddings: Tensor, scale: float) -> Tables:
        """Position embeddings (R, D) to keys and queries (R, H, D / H), scaled."""
        projections = self._position_projections()
        weights = [p for module in projections if module is not None for p in module.parameters()]
        return self.kept.get(self, weights, lambda: self._tables(projections, embeddings, scale), embeddings, scale)

    def _tables(self, projections: tuple[nn.Module | None, ...], embeddings: Tensor, scale: float) -> Tables:
        embeddings = self.pos_dropout(embeddings[: 2 * self.pos_ebd_size])
        return tuple(
            None if project is None else (project(embeddings) * scale).unflatten(-1, (self.num_attention_heads, -1))
            for project in projections
        )
