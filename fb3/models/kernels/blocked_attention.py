"""Attention in bf16 on a CPU: one essay and a few heads at a time, so that their probabilities stay in the cache.

There torch's fused kernel gains nothing from bf16. For 8 essays of 512 tokens, on two AVX-512 cores, it takes 31 ms at
12 heads of width 32 (57 ms at width 64), this one at most 18 ms (26 ms); with the backward pass 107 ms against 36 ms.
It goes through transformers' attention interface, so encoders outside that (T5, and all before transformers 4.56 or so)
keep their own; DeBERTa has `fb3.models.kernels.deberta`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import modeling_utils

_NAME = "fb3_blocked"
_BLOCK_BYTES = 2**21  # of probabilities at a time; they should stay in a core's own cache
_LOG2_E = math.log2(math.e)
_SMALLEST, _LARGEST = 2.0**-100, 2.0**120  # sums of a row's powers that lose nothing


def use_blocked_attention(encoder: nn.Module) -> bool:
    """Switches an encoder from torch's scaled-dot-product attention to the blocked one, where that is possible.

    It still takes torch's own on other devices, in other precisions and with dropout, where that is the faster one.

    Returns:
        False where the encoder or the version of transformers does not allow it; then nothing has changed.
    """
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    except ImportError:
        return False
    possible = getattr(encoder, "_supports_attention_backend", False) and hasattr(encoder, "set_attn_implementation")
    if not possible or encoder.config._attn_implementation != "sdpa":
        return False
    modeling_utils.ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, partial(_mask, sdpa_mask))
    encoder.set_attn_implementation(_NAME)
    return encoder.config._attn_implementation == _NAME


def _mask(make: Callable[..., Tensor | None], *args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask, (B, 1, T, T), or (B, 1, 1, T) where all queries of an essay look at the same keys.

    Made once a forward pass, and read by each layer. What is being traced must not depend on this one batch.
    """
    mask = make(*args, **kwargs)
    if mask is None or mask.device.type != "cpu" or torch.jit.is_tracing():
        return mask
    if not bool((mask == mask[:, :, :1]).all()):
        return mask
    return mask[:, :, :1]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: queries, keys and values (B, H, T, D) to (B, T, H, D)."""
    blocked = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape == query.shape
    causal = kwargs.get("is_causal", getattr(module, "is_causal", True)) and attention_mask is None
    if not blocked or causal or kwargs.get("dropout") or kwargs.get("position_bias") is not None:
        return modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling") or 1 / math.sqrt(query.shape[-1])
    return blocked_attention(query, key, value, _bias(attention_mask, query), scale).transpose(1, 2), None


def _bias(mask: Tensor | None, query: Tensor) -> Tensor:
    """What is added to the logits, (B, 1, 1 or T, T): 0 where a token may look, a huge negative number elsewhere."""
    if mask is None:
        return query.new_zeros(()).expand(len(query), 1, 1, query.shape[2])
    if mask.stride(2) == 0:
        mask = mask[:, :, :1]  # all queries look at the same keys
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return mask.to(query.dtype)


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale · query · keyᵀ + bias) · value, block by block.

    Args:
        query, key, value: (B, H, T, D).
        bias: (B, 1 or H, 1 or T, T), gets no gradient.
        scale: of the products.

    Returns:
        (B, H, T, D), laid out as (B, T, H, D).
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _Blocked.apply(query, key, value, bias, scale)
    out, lengths = room_like(query), _lengths(bias)
    query, key = (query * (scale * _LOG2_E)).contiguous(), key.contiguous()
    room = query.new_empty(heads_at_once(query) * query.shape[2] ** 2)
    for essay, heads, added in _blocks(query, bias):
        three = (states[essay, heads] for states in (query, key, value))
        _attend(*three, added, lengths[essay] if lengths else None, room, out[essay, heads])
    return out


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, length: int | None, room: Tensor, out: Tensor
) -> None:
    """softmax(ln 2 · query · keyᵀ + bias) · value of a block, (H, T, D), into `out`; `room` takes the logits.

    Where the bias hides what comes after `length` and nothing else, that is zeroed, and nothing added. It is not cut
    off: for each new shape oneDNN makes its kernels anew.

    Without the usual search for the largest logit, and normalised last, where there is least to divide: powers of two
    reach from 2^-126 to 2^127, which real logits stay far within. Where a row does not, or sees nothing, the usual way.
    """
    powers = _logits(query, key, None if length else bias, room).exp2_()
    if length:
        powers[..., length:] = 0
    total = powers.sum(-1, keepdim=True)
    if total.amin() > _SMALLEST and total.amax() < _LARGEST:
        torch.div(torch.bmm(powers, value), total, out=out)
        return
    logits = _logits(query, key, bias, room).float() * math.log(2)
    torch.bmm(logits.softmax(-1).to(value.dtype), value, out=out)


def _logits(query: Tensor, key: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    heads, tokens = query.shape[:2]
    logits = room[: heads * tokens * tokens].view(heads, tokens, tokens)
    torch.bmm(query, key.mT, out=logits)
    if bias is None:
        return logits
    # Finite still when multiplied: a padding token that may look nowhere is to get a number, as others look at it.
    return logits.add_(bias.clamp(min=torch.finfo(bias.dtype).min / 2), alpha=_LOG2_E)


def _lengths(bias: Tensor) -> list[int] | None:
    """Real tokens of each essay where the bias only hides padding on the right; then it need not be added."""
    if bias.shape[1:3] != (1, 1):
        return None
    real = (bias == 0).flatten(1)  # (B, T)
    lengths = real.sum(-1)
    padded = torch.arange(real.shape[1]) < lengths[:, None]
    hidden = bias.flatten(1)[~real] <= torch.finfo(bias.dtype).min
    return lengths.tolist() if bool((padded == real).all() & hidden.all() & (lengths > 0).all()) else None


class _Blocked(torch.autograd.Function):
    """The same, with its gradient; keeps the probabilities for the way back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        out, kept = room_like(query), []
        for essay, heads, added in _blocks(query, bias):
            at = (essay, heads)
            kept.append(torch.baddbmm(added, query[at], key[at].mT, alpha=scale).softmax(-1))
            torch.bmm(kept[-1], value[at], out=out[at])
        ctx.save_for_backward(query, key, value, bias, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, bias, *kept = ctx.saved_tensors
        to_query, to_key, to_value = room_like(query), room_like(query), room_like(query)
        for (essay, heads, _), probabilities in zip(_blocks(query, bias), kept, strict=True):
            at = (essay, heads)
            torch.bmm(probabilities.mT, gradient[at], out=to_value[at])
            slope = torch.bmm(gradient[at], value[at].mT)
            slope = torch._softmax_backward_data(slope, probabilities, -1, slope.dtype).mul_(ctx.scale)
            torch.bmm(slope, key[at], out=to_query[at])
            torch.bmm(slope.mT, query[at], out=to_key[at])
        return to_query, to_key, to_value, None, None


def room_like(states: Tensor) -> Tensor:
    """Room for (B, H, T, D), laid out as (B, T, H, D), as the projections before and after have it."""
    return torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def heads_at_once(query: Tensor) -> int:
    heads, tokens = query.shape[1:3]
    return min(heads, max(1, _BLOCK_BYTES // (tokens * tokens * query.element_size())))


def _blocks(query: Tensor, bias: Tensor) -> list[tuple[int, slice, Tensor]]:
    """Essay, heads and what is added to their logits, for each block."""
    size, heads = heads_at_once(query), query.shape[1]
    return [
        (essay, block, added if added.shape[0] == 1 else added[block])
        for essay, added in enumerate(bias.expand(len(query), -1, -1, -1).unbind())
        for block in (slice(start, min(start + size, heads)) for start in range(0, heads, size))
    ]
