"""Disentangled attention (He et al. 2020, arXiv:2006.03654) without gathers, forward and backward.

softmax(scale · query · keyᵀ + query · to_keys(i − j) + key · to_queries(i − j)) · value: the bias is a function of one
token and of the distance i − j. So T tokens' products with the tables' rows for all 2T − 1 distances hold it already:
token i's, read from T − 1 − i on. That is a strided view, and its gradient a strided copy. The gather of an index map
costs more than the products do, and its gradient adds up one number at a time.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fb3.models.kernels.blocked_attention import heads_at_once, room_like

try:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
except ImportError:  # of another make; `use_fused_disentangled_attention` refuses it
    make_log_bucket_position = None

Tables = tuple[Tensor | None, Tensor | None]  # position keys for the queries, position queries for the keys
Hidden = slice | Tensor | None  # an essay's hidden keys: its padding, or others as (T,), or none
_BLOCKED = ("cpu",)  # devices whose cache decides; the others take torch's fused kernel with the bias as its mask
_ALIGNED = 8  # numbers; torch's memory-efficient kernel copies a mask with other rows
_TILE = {torch.float32: 128, torch.float64: 128}  # tokens at a time, measured; in low precision products are cheaper
_TILE_LOW = 512


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
    """Attention with relative positions.

    Args:
        query, key, value: (B, H, T, D); values may be of another width.
        tables: position keys and queries (R, H, D), each or none, with the scale already in them.
        rows: of the tables, for each distance, from `rows_by_distance`.
        mask: keys that may be seen, (B, T).
        scale: of the products of queries and keys.
        dropout: of the probabilities.

    Returns:
        (B, H, T, D), laid out as (B, T, H, D).
    """
    spread = tuple(t if t is None else t.index_select(0, order) for t, order in zip(tables, rows, strict=True))
    with torch.autocast(query.device.type, enabled=False):
        if query.device.type in _BLOCKED:
            hidden = None if mask.all() else ~mask.bool()
            return _by_blocks(query, key, value, spread, hidden, scale, dropout)
        return _at_once(query, key, value, spread, ~mask.bool(), scale, dropout)


@lru_cache(maxsize=256)
def rows_by_distance(
    tokens: int, span: int, buckets: int, farthest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tables' rows for each distance i − j, (2T − 1,): from T − 1 down, for the keys, and up, for the queries."""
    with torch.inference_mode(False), torch.no_grad():  # they will be saved for a gradient
        distances = torch.arange(1 - tokens, tokens, device=device)
        if buckets > 0 and farthest > 0:
            distances = make_log_bucket_position(distances, buckets, farthest).long()
        upward = (distances + span).clamp(0, 2 * span - 1)
        return upward.flip(0), upward


def _skewed(products: Tensor, tokens: int) -> Tensor:
    """Products (N, n, n + T − 1) of n tokens in a row with a table to (N, n, T): token i's begin at n − 1 − i."""
    count, some, width = products.shape
    return products.as_strided((count, some, tokens), (some * width, width - 1, 1), some - 1)


class _Bias(torch.autograd.Function):
    """Products with the tables, (H, B · T, 2T − 1) each or none, to what is added to the logits, (B, H, T, T)."""

    @staticmethod
    def forward(ctx: Any, to_keys: Tensor | None, to_queries: Tensor | None, hidden: Tensor) -> Tensor:
        essays, tokens = hidden.shape
        like = to_queries if to_keys is None else to_keys
        rows = -(-tokens // _ALIGNED) * _ALIGNED
        out = like.new_empty(essays, len(like), tokens, rows)[..., :tokens]
        if to_keys is None:
            out.copy_(_Bias.view(to_queries, essays).mT)
        elif to_queries is None:
            out.copy_(_Bias.view(to_keys, essays))
        else:
            torch.add(_Bias.view(to_keys, essays), _Bias.view(to_queries, essays).mT, out=out)
        ctx.shape = (len(like), essays * tokens, 2 * tokens - 1)
        return out.masked_fill_(hidden[:, None, None], torch.finfo(out.dtype).min)

    @staticmethod
    def view(products: Tensor, essays: int) -> Tensor:
        """(H, B · T, 2T − 1) to (B, H, T, T), in place."""
        tokens = products.shape[1] // essays
        by_essay = _skewed(products.view(-1, tokens, products.shape[2]), tokens)
        return by_essay.unflatten(0, (len(products), essays)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        given: list[Tensor | None] = [None, None]
        for place, wanted in enumerate(ctx.needs_input_grad[:2]):
            if wanted:
                given[place] = slope.new_zeros(ctx.shape)
                _Bias.view(given[place], len(slope)).copy_(slope.mT if place else slope)
        return *given, None


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, hidden: Tensor, scale: float, dropout: float
) -> Tensor:
    """(B, H, T, D) each, tables (2T − 1, H, D), hidden keys (B, T) to (B, H, T, D), by torch's fused kernel."""
    products = [
        None if table is None else states.transpose(0, 1).flatten(1, 2) @ table.permute(1, 2, 0)
        for states, table in zip((query, key), tables, strict=True)
    ]
    bias = _Bias.apply(*products, hidden)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)


def _by_blocks(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, hidden: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """The same, one essay and a few heads at a time, so that their probabilities stay in the cache."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query, key, value, *tables)):
        return _Blocked.apply(query, key, value, *tables, hidden, scale, dropout)
    out, tokens = room_like(value), query.shape[2]
    # As products want them, once: bmm would copy a strided block each time.
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    tables = tuple(None if table is None else table.permute(1, 2, 0).contiguous() for table in tables)
    room = query.new_empty(2, heads_at_once(query), tokens, tokens)
    for (essay, heads), padding in _blocks(query, hidden):
        at, (logits, probabilities) = (essay, heads), room[:, : heads.stop - heads.start]
        _logits(query[at], key[at], tuple(t if t is None else t[heads] for t in tables), padding, scale, logits)
        torch.softmax(logits, -1, out=probabilities)
        torch.bmm(F.dropout(probabilities, dropout) if dropout else probabilities, value[at], out=out[at])
    return out


class _Blocked(torch.autograd.Function):
    """The same, with its gradient; keeps the probabilities for the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        to_keys: Tensor | None,
        to_queries: Tensor | None,
        hidden: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        out, kept = room_like(value), []
        for at, padding in _blocks(query, hidden):
            size = at[1].stop - at[1].start
            logits = query.new_empty(size, query.shape[2], query.shape[2])
            _logits(query[at], key[at], _of((to_keys, to_queries), at), padding, scale, logits)
            kept.append(logits.softmax(-1))
            weights = kept[-1]
            if dropout:
                weights, drawn = torch.native_dropout(weights, dropout, True)
                kept.append(drawn)
            torch.bmm(weights, value[at], out=out[at])
        ctx.save_for_backward(query, key, value, to_keys, to_queries, *kept)
        ctx.scale, ctx.dropout = scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors  # once: checkpointing allows no second look
        tables, kept = rest[:2], iter(rest[2:])
        to_query, to_key, to_value = room_like(query), room_like(query), room_like(value)
        # Sums over all essays: in low precision, each would be rounded.
        to_tables = [
            None if t is None else torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
            for t in tables
        ]
        for at, _ in _blocks(query, None):
            weights = probabilities = next(kept)
            slope = torch.bmm(gradient[at], value[at].mT)
            if ctx.dropout:
                drawn, up = next(kept), 1 / (1 - ctx.dropout)
                weights, slope = (torch.ops.aten.native_dropout_backward(t, drawn, up) for t in (weights, slope))
            torch.bmm(weights.mT, gradient[at], out=to_value[at])
            slope = torch._softmax_backward_data(slope, probabilities, -1, slope.dtype)
            to_query[at] = torch.bmm(slope, key[at]).mul_(ctx.scale)
            to_key[at] = torch.bmm(slope.mT, query[at]).mul_(ctx.scale)
            sides = ((slope, query, to_query), (slope.mT, key, to_key))
            for (skewed, states, to_states), table, to_table in zip(sides, tables, to_tables, strict=True):
                if table is not None:
                    _back(skewed, states[at], table[:, at[1]], to_states[at], to_table[:, at[1]])
        return (
            to_query,
            to_key,
            to_value,
            *(None if t is None else t.to(query.dtype) for t in to_tables),
            None,
            None,
            None,
        )


def _blocks(query: Tensor, hidden: Tensor | None) -> list[tuple[tuple[int, slice], Hidden]]:
    """Essay and heads of each block, and the essay's hidden keys."""
    size, (essays, heads) = heads_at_once(query), query.shape[:2]
    places: list[Hidden] = [None] * essays
    if hidden is not None:
        lengths = (~hidden).sum(1)
        padding = (hidden == (torch.arange(hidden.shape[1]) >= lengths[:, None])).all(1)
        ends = zip(lengths.tolist(), padding.tolist(), hidden, strict=True)
        places = [slice(length, None) if plain else keys for length, plain, keys in ends]
    return [
        ((essay, slice(start, min(start + size, heads))), places[essay])
        for essay in range(essays)
        for start in range(0, heads, size)
    ]


def _of(tables: Tables, at: tuple[int, slice]) -> Tables:
    """(2T − 1, H, D) to the block's heads, (N, D, 2T − 1)."""
    return tuple(None if table is None else table[:, at[1]].permute(1, 2, 0) for table in tables)


def _tiles(states: Tensor) -> list[tuple[slice, slice]]:
    """Some tokens, and the distances from them to all: few, since n of them need n + T − 1 products each."""
    tokens = states.shape[1]
    some = _TILE.get(states.dtype, _TILE_LOW)
    ends = [(start, min(start + some, tokens)) for start in range(0, tokens, some)]
    return [(slice(start, end), slice(tokens - end, 2 * tokens - 1 - start)) for start, end in ends]


def _logits(query: Tensor, key: Tensor, tables: Tables, hidden: Hidden, scale: float, out: Tensor) -> None:
    """Queries and keys (N, T, D), tables (N, D, 2T − 1) to logits (N, T, T), in place."""
    to_keys, to_queries = tables
    tokens = query.shape[1]
    for some, distances in _tiles(query):
        if to_queries is not None:
            out[:, :, some] = _skewed(torch.bmm(key[:, some], to_queries[..., distances]), tokens).mT
    for some, distances in _tiles(query):
        if to_keys is not None:
            bias = _skewed(torch.bmm(query[:, some], to_keys[..., distances]), tokens)
            out[:, some].copy_(bias) if to_queries is None else out[:, some].add_(bias)
    out.baddbmm_(query, key.mT, alpha=scale)
    if hidden is not None:
        out[..., hidden] = torch.finfo(out.dtype).min


def _back(slope: Tensor, states: Tensor, table: Tensor, to_states: Tensor, to_table: Tensor) -> None:
    """A bias' slope (N, T, T) to that of the states (N, T, D) and the table (2T − 1, N, D), added in place."""
    for some, distances in _tiles(states):
        products = slope.new_zeros(len(slope), some.stop - some.start, distances.stop - distances.start)
        _skewed(products, states.shape[1]).copy_(slope[:, some])
        to_states[:, some] += torch.bmm(products, table[distances].transpose(0, 1))
        to_table[distances] += torch.bmm(products.mT, states[:, some]).transpose(0, 1)
