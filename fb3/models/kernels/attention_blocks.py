"""Attention and its gradient, one essay and a few heads at a time, whose probabilities then stay in a CPU's cache.

`blocked_attention` adds a bias to the logits, `disentangled_attention` products with tables of position embeddings.
"""

from typing import Any

import torch
from torch import Tensor

Tables = tuple[Tensor | None, Tensor | None]  # position keys for the queries, position queries for the keys
Block = tuple[int, slice]  # an essay, and some of its heads
Hidden = slice | Tensor | None  # an essay's masked keys: a slice of padding, a mask (T,), or none
_BLOCK_BYTES = 2**21  # size of a block's probabilities, to stay in a core's own cache
_TILE = {torch.float32: 128, torch.float64: 128}  # tokens a tile, measured
_TILE_LOW = 512  # for other types, in which the wasted products of longer tiles are cheap


def head_blocks(query: Tensor) -> list[Block]:
    """The blocks of queries (B, H, T, D)."""
    essays, heads = query.shape[:2]
    size = heads_at_once(query)
    starts = range(0, heads, size)
    return [(essay, slice(start, min(start + size, heads))) for essay in range(essays) for start in starts]


def heads_at_once(query: Tensor) -> int:
    """The most heads of queries (B, H, T, D) whose probabilities fit the cache, at least one."""
    heads, tokens = query.shape[1:3]
    return min(heads, max(1, _BLOCK_BYTES // (tokens * tokens * query.element_size())))


def empty_by_token(states: Tensor) -> Tensor:
    """Empty states (B, H, T, D) that lie in memory as (B, T, H, D), like the projections before and after."""
    return torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def block_bias(bias: Tensor, block: Block) -> Tensor:
    """A block's part, (1 or N, 1 or T, T), of a bias (B, 1 or H, 1 or T, T)."""
    essay, heads = block
    return bias[essay, heads if bias.shape[1] > 1 else slice(None)]


def hidden_keys(hidden: Tensor | None, essays: int) -> list[Hidden]:
    """Each essay's hidden keys from (B, T); a slice, which is faster to fill than a mask, where they are its end."""
    if hidden is None:
        return [None] * essays
    lengths = (~hidden).sum(1)
    padded = (hidden == (torch.arange(hidden.shape[1]) >= lengths[:, None])).all(1)
    ends = zip(lengths.tolist(), padded.tolist(), hidden, strict=True)
    return [slice(length, None) if plain else keys for length, plain, keys in ends]


def skewed(products: Tensor, tokens: int) -> Tensor:
    """A view (N, n, T) of products (N, n, W): n neighbouring tokens by a table with one row for each distance.

    The distances take n + T − 1 of the W columns; any columns behind them only pad, and no view reaches them.
    Each token is one further from every key than the token before it. So its T products begin one column earlier, token
    i's at n − 1 − i. A view whose row stride is one less than the width reads them all, without a copy.
    """
    count, some, width = products.shape
    return products.as_strided((count, some, tokens), (some * width, width - 1, 1), some - 1)


def block_logits(
    query: Tensor, key: Tensor, tables: Tables, bias: Tensor | None, hidden: Hidden, scale: float, out: Tensor
) -> Tensor:
    """A block's logits: scale · query · keyᵀ + bias, or + products with the tables.

    Args:
        query, key: (N, T, D).
        tables: (N, D, 2T − 1) each or none, by distance: from T − 1 down for position keys, up to it for queries.
        bias: (1 or N, 1 or T, T), only without tables.
        hidden: keys that get the lowest number.
        scale: factor of the products of queries and keys.
        out: takes the logits, (N, T, T).
    """
    to_keys, to_queries = tables
    tokens = query.shape[1]
    if bias is not None:
        out.copy_(bias)
    for some, distances in _tiles(query):
        if to_queries is not None:
            out[:, :, some] = skewed(torch.bmm(key[:, some], to_queries[..., distances]), tokens).mT
    for some, distances in _tiles(query):
        if to_keys is not None:
            products = skewed(torch.bmm(query[:, some], to_keys[..., distances]), tokens)
            out[:, some].copy_(products) if to_queries is None else out[:, some].add_(products)
    out.baddbmm_(query, key.mT, alpha=scale)
    if hidden is not None:
        out[..., hidden] = torch.finfo(out.dtype).min
    return out


def _tiles(states: Tensor) -> list[tuple[slice, slice]]:
    """Runs of tokens of states (N, T, D), and the table's rows for their distances to all T.

    Short runs waste fewer products: n tokens are multiplied with n + T − 1 rows, of which each needs only T.
    """
    tokens = states.shape[1]
    some = _TILE.get(states.dtype, _TILE_LOW)
    ends = [(start, min(start + some, tokens)) for start in range(0, tokens, some)]
    return [(slice(start, end), slice(tokens - end, 2 * tokens - 1 - start)) for start, end in ends]


class BlockedAttention(torch.autograd.Function):
    """softmax(logits of `block_logits`) · value, with dropout; keeps the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        to_keys: Tensor | None,
        to_queries: Tensor | None,
        bias: Tensor | None,
        hidden: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Queries, keys, values (B, H, T, D), tables (2T − 1, H, D), bias (B, 1 or H, 1 or T, T), hidden (B, T)."""
        out, kept, keys = empty_by_token(value), [], hidden_keys(hidden, len(query))
        for block in head_blocks(query):
            essay, heads = block
            tables = tuple(None if t is None else t[:, heads].permute(1, 2, 0) for t in (to_keys, to_queries))
            added = None if bias is None else block_bias(bias, block)
            logits = query.new_empty(heads.stop - heads.start, query.shape[2], query.shape[2])
            block_logits(query[block], key[block], tables, added, keys[essay], scale, logits)
            kept.append(logits.softmax(-1))
            weights = kept[-1]
            if dropout:
                weights, drawn = torch.native_dropout(weights, dropout, True)
                kept.append(drawn)
            torch.bmm(weights, value[block], out=out[block])
        ctx.save_for_backward(query, key, value, to_keys, to_queries, *kept)
        ctx.scale, ctx.dropout = scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors  # read once: checkpointing recomputes them at the first access
        tables, kept = rest[:2], iter(rest[2:])
        to_query, to_key, to_value = (empty_by_token(states) for states in (query, key, value))
        # In float32: a table's gradient is a sum over all essays, and low precision would round each addition.
        to_tables = [
            None if t is None else torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
            for t in tables
        ]
        for block in head_blocks(query):
            heads = block[1]
            weights = probabilities = next(kept)
            slope = torch.bmm(gradient[block], value[block].mT)
            if ctx.dropout:
                drawn, factor = next(kept), 1 / (1 - ctx.dropout)
                weights, slope = (torch.ops.aten.native_dropout_backward(t, drawn, factor) for t in (weights, slope))
            torch.bmm(weights.mT, gradient[block], out=to_value[block])
            slope = torch._softmax_backward_data(slope, probabilities, -1, slope.dtype)  # gradient of the logits
            # A fixed order of roundings, so that a training ends in the same bits in each version of fb3. With tables
            # the scale comes last, because their gradients want the unscaled slope.
            if any(table is not None for table in tables):
                to_query[block] = torch.bmm(slope, key[block]).mul_(ctx.scale)
                to_key[block] = torch.bmm(slope.mT, query[block]).mul_(ctx.scale)
            else:
                torch.bmm(slope.mul_(ctx.scale), key[block], out=to_query[block])
                torch.bmm(slope.mT, query[block], out=to_key[block])
            sides = ((slope, query, to_query), (slope.mT, key, to_key))
            for (side, states, to_states), table, to_table in zip(sides, tables, to_tables, strict=True):
                if table is not None:
                    _add_position_gradients(side, states[block], table[:, heads], to_states[block], to_table[:, heads])
        return to_query, to_key, to_value, *(None if t is None else t.to(query.dtype) for t in to_tables), *[None] * 4


def _add_position_gradients(slope: Tensor, states: Tensor, table: Tensor, to_states: Tensor, to_table: Tensor) -> None:
    """Adds the gradients of the position products, for states (N, T, D) and table (2T − 1, N, D), in place."""
    for some, distances in _tiles(states):
        products = slope.new_zeros(len(slope), some.stop - some.start, distances.stop - distances.start)
        skewed(products, states.shape[1]).copy_(slope[:, some])  # the gradient of a strided view is a strided copy
        to_states[:, some] += torch.bmm(products, table[distances].transpose(0, 1))
        to_table[distances] += torch.bmm(products.mT, states[:, some]).transpose(0, 1)
