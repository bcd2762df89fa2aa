"""Disentangled attention (He et al. 2020, arXiv:2006.03654) without gathers, forward and backward.

softmax(scale · (query · keyᵀ + query · to_keys(i − j) + key · to_queries(i − j))) · value: the second and third term
depend on one token's state and on the distance i − j alone. So one product of the T tokens with a table that has a row
for each of the 2T − 1 distances holds all their numbers: token i's are T neighbours, from column T − 1 − i on. Reading
them is a strided view, and its gradient a strided copy. transformers gathers them by an index map, which costs more
than the products themselves, and whose gradient adds up one number at a time.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.models.kernels.attention_blocks import (
    BlockedAttention,
    Tables,
    block_logits,
    empty_by_token,
    head_blocks,
    heads_at_once,
    hidden_keys,
    skewed,
)

try:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
except ImportError:  # another version of transformers; `use_fused_disentangled_attention` then refuses
    make_log_bucket_position = None

_BLOCKED = ("cpu",)  # devices whose cache sets the speed; others take torch's fused kernel, the bias as its mask
# A GPU reads rows that begin at multiples of 16 bytes, eight numbers in low precision: torch's memory-efficient kernel
# copies other masks, and products with an odd number of columns, such as 2T − 1, go through slow kernels.
_ALIGNED = 8


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tables,
    rows: tuple[Tensor, Tensor],
    mask: Tensor,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention with relative positions, (B, H, T, D), laid out as (B, T, H, D).

    Args:
        query, key, value: (B, H, T, D); values may be of another width.
        tables: position keys and queries (R, H, D), each or none.
        rows: the tables' row for each distance, from `rows_by_distance`.
        mask: keys that may be seen, (B, T).
        scale: factor of the sum of all products.
        dropout: share of the probabilities that is set to 0.
    """
    # The tables are scaled before they are multiplied: unscaled products may exceed fp16.
    by_distance = tuple(
        None if table is None else (table * scale).index_select(0, order)
        for table, order in zip(tables, rows, strict=True)
    )
    with torch.autocast(query.device.type, enabled=False):
        if query.device.type in _BLOCKED:
            hidden = None if mask.all() else ~mask.bool()
            return _by_blocks(query, key, value, by_distance, hidden, scale, dropout)
        return _at_once(query, key, value, by_distance, ~mask.bool(), scale, dropout)


@lru_cache(maxsize=256)
def rows_by_distance(
    tokens: int, span: int, buckets: int, farthest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows of position keys and position queries for distances i − j, (2T − 1,) each: from T − 1 down, and up to it."""
    with torch.inference_mode(False), torch.no_grad():  # no inference tensors: autograd will save them
        distances = torch.arange(1 - tokens, tokens, device=device)
        if buckets > 0 and farthest > 0:
            distances = make_log_bucket_position(distances, buckets, farthest).long()
        upward = (distances + span).clamp(0, 2 * span - 1)
        return upward.flip(0), upward


class _PositionBias(torch.autograd.Function):
    """Products with the tables, (H, B · T, W ≥ 2T − 1) each or none, to the bias on the logits, (B, H, T, T).

    The gradient of columns from 2T − 1 on is zero: they only pad.
    """

    @staticmethod
    def forward(ctx: Any, to_keys: Tensor | None, to_queries: Tensor | None, hidden: Tensor) -> Tensor:
        essays, tokens = hidden.shape
        like = to_queries if to_keys is None else to_keys
        out = like.new_empty(essays, len(like), tokens, _aligned(tokens))[..., :tokens]
        if to_keys is None:
            out.copy_(_PositionBias.view(to_queries, essays).mT)
        elif to_queries is None:
            out.copy_(_PositionBias.view(to_keys, essays))
        else:
            torch.add(_PositionBias.view(to_keys, essays), _PositionBias.view(to_queries, essays).mT, out=out)
        ctx.shape = like.shape
        return out.masked_fill_(hidden[:, None, None], torch.finfo(out.dtype).min)

    @staticmethod
    def view(products: Tensor, essays: int) -> Tensor:
        """(H, B · T, W) to (B, H, T, T), without a copy."""
        tokens = products.shape[1] // essays
        by_essay = skewed(products.view(-1, tokens, products.shape[2]), tokens)
        return by_essay.unflatten(0, (len(products), essays)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        given: list[Tensor | None] = [None, None]
        for place, wanted in enumerate(ctx.needs_input_grad[:2]):
            if wanted:
                given[place] = slope.new_zeros(ctx.shape)
                _PositionBias.view(given[place], len(slope)).copy_(slope.mT if place else slope)
        return *given, None


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, hidden: Tensor, scale: float, dropout: float
) -> Tensor:
    """Computes all in torch's fused kernel: states (B, H, T, D), tables (2T − 1, H, D), hidden keys (B, T)."""
    products = [
        None if table is None else _products(states, table) for states, table in zip((query, key), tables, strict=True)
    ]
    bias = _PositionBias.apply(*products, hidden)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)


def _products(states: Tensor, table: Tensor) -> Tensor:
    """States (B, H, T, D) by a table (R, H, D) to (H, B · T, W); the columns from R on are zero and only align."""
    padded = F.pad(table, (0, 0, 0, 0, 0, _aligned(len(table)) - len(table)))
    return states.transpose(0, 1).flatten(1, 2) @ padded.permute(1, 2, 0)


def _aligned(length: int) -> int:
    """The next multiple of `_ALIGNED`, or the length itself where it is one."""
    return -(-length // _ALIGNED) * _ALIGNED


def _by_blocks(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, hidden: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Computes the values of `_at_once`, one essay and a few heads at a time, for a CPU's cache."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query, key, value, *tables)):
        return BlockedAttention.apply(query, key, value, *tables, None, hidden, scale, dropout)
    out, tokens, keys = empty_by_token(value), query.shape[2], hidden_keys(hidden, len(query))
    # Contiguous once: bmm would copy a strided block each time.
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    tables = tuple(None if table is None else table.permute(1, 2, 0).contiguous() for table in tables)
    buffer = query.new_empty(2, heads_at_once(query), tokens, tokens)
    for block in head_blocks(query):
        essay, heads = block
        logits, probabilities = buffer[:, : heads.stop - heads.start]
        of_heads = tuple(None if table is None else table[heads] for table in tables)
        block_logits(query[block], key[block], of_heads, None, keys[essay], scale, logits)
        torch.softmax(logits, -1, out=probabilities)
        torch.bmm(F.dropout(probabilities, dropout) if dropout else probabilities, value[block], out=out[block])
    return out
