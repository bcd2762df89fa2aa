"""Attention in bf16 on a CPU that replaces torch's fused kernel, which gains nothing from bf16 there.

One essay and a few heads are computed at a time, so that their probabilities stay in the cache. For 8 essays of 512
tokens, on two AVX-512 cores, torch's kernel takes 31 ms at 12 heads of width 32 (57 ms at width 64), this one at most
18 ms (26 ms); with the backward pass 107 ms against 36 ms. It is registered with transformers' attention interface, so
encoders that do not use it (T5, and all before transformers 4.56 or so) keep their own; DeBERTa's is in
`fb3.models.kernels.deberta`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import modeling_utils

from fb3.models.kernels.attention_blocks import BlockedAttention, block_bias, empty_by_token, head_blocks, heads_at_once

_NAME = "fb3_blocked"
_LOG2_E = math.log2(math.e)
_SMALLEST, _LARGEST = 2.0**-100, 2.0**120  # a row's sum of powers between these has not under- or overflowed


def use_blocked_attention(encoder: nn.Module) -> bool:
    """Switches an encoder from torch's scaled-dot-product attention to the blocked one, in place.

    On other devices, in other precisions and with dropout torch's own is faster, and still computes. Returns False,
    with nothing changed, where the encoder or the version of transformers does not allow the switch.
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
    """transformers' mask, (B, 1, T, T), cut to (B, 1, 1, T) where all queries of an essay look at the same keys.

    Each layer reads it, so a cut one is faster. A trace keeps it whole: whether it can be cut depends on the batch.
    """
    mask = make(*args, **kwargs)
    if mask is None or mask.device.type != "cpu" or torch.jit.is_tracing():
        return mask
    return mask[:, :, :1] if bool((mask == mask[:, :, :1]).all()) else mask


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
    """A mask as a bias on the logits, (B, 1, 1 or T, T): 0 where a token may look, a huge negative number elsewhere."""
    if mask is None:
        return query.new_zeros(()).expand(len(query), 1, 1, query.shape[2])
    if mask.stride(2) == 0:
        mask = mask[:, :, :1]  # all queries look at the same keys
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return mask.to(query.dtype)


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale · query · keyᵀ + bias) · value, block by block, (B, H, T, D), laid out as (B, T, H, D).

    Queries, keys and values are (B, H, T, D). The bias, (1 or B, 1 or H, 1 or T, T), gets no gradient.
    """
    bias = bias.expand(len(query), -1, -1, -1)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return BlockedAttention.apply(query, key, value, None, None, bias, None, scale, 0.0)
    out, lengths = empty_by_token(query), _lengths(bias)
    query, key = (query * (scale * _LOG2_E)).contiguous(), key.contiguous()
    buffer = query.new_empty(heads_at_once(query) * query.shape[2] ** 2)
    for block in head_blocks(query):
        length = lengths[block[0]] if lengths else None
        _attend(query[block], key[block], value[block], block_bias(bias, block), length, buffer, out[block])
    return out


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, length: int | None, buffer: Tensor, out: Tensor
) -> None:
    """softmax(ln 2 · query · keyᵀ + bias) · value of a block, (N, T, D), into `out`; `buffer` takes the logits.

    Queries come multiplied by log₂ e, so that powers of two, which are cheap, are the softmax's powers of e. Where the
    bias only hides the keys from `length` on, their powers are set to 0 and no bias is added; they are not cut off,
    since oneDNN compiles a kernel for each new shape.

    A softmax usually subtracts the row's largest logit, lest powers overflow, and divides T · T numbers by their sum.
    Here powers may reach from 2^-126 to 2^127, far beyond real logits: nothing is subtracted, and only the T · D
    results are divided. A row whose sum leaves the safe range, or that sees nothing, is computed the usual way.
    """
    powers = _logits(query, key, None if length else bias, buffer).exp2_()
    if length:
        powers[..., length:] = 0
    total = powers.sum(-1, keepdim=True)
    if total.amin() > _SMALLEST and total.amax() < _LARGEST:
        torch.div(torch.bmm(powers, value), total, out=out)
        return
    logits = _logits(query, key, bias, buffer).float() * math.log(2)
    torch.bmm(logits.softmax(-1).to(value.dtype), value, out=out)


def _logits(query: Tensor, key: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """Logits to the base of two, (N, T, T), in the buffer."""
    heads, tokens = query.shape[:2]
    logits = buffer[: heads * tokens * tokens].view(heads, tokens, tokens)
    torch.bmm(query, key.mT, out=logits)
    if bias is None:
        return logits
    # Clamped so that the product stays finite: a fully masked row must not become NaN, because others attend to it.
    return logits.add_(bias.clamp(min=torch.finfo(bias.dtype).min / 2), alpha=_LOG2_E)


def _lengths(bias: Tensor) -> list[int] | None:
    """The real tokens of each essay, where the bias hides padding on the right and nothing else; else none."""
    if bias.shape[1:3] != (1, 1):
        return None
    real = (bias == 0).flatten(1)  # (B, T)
    lengths = real.sum(-1)
    padded = torch.arange(real.shape[1]) < lengths[:, None]
    hidden = bias.flatten(1)[~real] <= torch.finfo(bias.dtype).min
    return lengths.tolist() if bool((padded == real).all() & hidden.all() & (lengths > 0).all()) else None
