"""Disentangled attention by disentangled-flash's Triton kernels, forward and backward, where they run and are right.

They never store a (T, T) matrix. Optional (`pip install 'fb3[flash]'`), for NVIDIA GPUs from compute capability 8.0 on:
Triton supports no T4. Elsewhere nothing of the library is imported. Before the first use on a device, their values for
two random essays are compared with fb3's own; kernels that are wrong or raise are refused, and torch's compute.
"""

import importlib.util
import math
import weakref
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from fb3.errors import one_line
from fb3.models.kernels.disentangled_attention import Tables, disentangled_attention, rows_by_distance
from fb3.system.progress import say

Span = tuple[int, int, int]  # half of a table's rows, buckets, farthest distance, as `rows_by_distance` takes them
_DEVICES = ("cuda",)
_OLDEST = (8, 0)  # compute capability
_SHORTEST, _LONGEST = 63, 8192  # tokens: the library picks one kernel for all up to 64, and promises none beyond 8192
_ALIGNED = 8  # rows of a table; products with other numbers of rows are slow
_GAPS = "there is padding between an essay's tokens"
# The trial: a span that some distances exceed; tokens enough that rounding does not decide, few enough for the memory.
_TRIAL_SPAN, _TRIAL_HEADS, _TRIAL_TOKENS = (24, 20, 64), 2, (32, 2048)
_TIMES, _LEAST = 3, 1e-5  # allowed error: multiple of fb3's own rounding, plus share of the exact values' norm

_faults: dict[tuple, str | None] = {}  # for each case the reason not to use the kernels, or None
_said: set[tuple] = set()
_last: tuple[weakref.ref, Tensor | None] | None = None  # the last mask and its pieces: layers share them


def flash_runs(query: Tensor, tables: Tables, scale: float, dropout: float) -> bool:
    """Whether the kernels are there and right for inputs like these, see `flash_attention`; a fault is said once."""
    if query.device.type not in _DEVICES or query.shape[2] > _LONGEST:
        return False
    case = _case(query, tables, dropout)
    if case not in _faults:
        if _absent(query.device):  # nothing to say: the library is optional
            _faults[case] = "absent"
        else:
            _faults[case] = _fault(query, tables, scale, dropout)
            _say(query, _faults[case])
    return _faults[case] is None


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, span: Span, mask: Tensor, scale: float, dropout: float
) -> Tensor | None:
    """Attention with relative positions, (B, T, H · D); none where the kernels cannot compute it, which is said once.

    Args:
        query, key, value: (B, H, T, D).
        tables: position keys and queries (R, H, D), each or none.
        span: how distances become rows.
        mask: keys that may be seen, (B, 1, 1, T).
        scale: factor of the sum of all products.
        dropout: share of the probabilities that is set to 0.
    """
    try:
        with torch.autocast(query.device.type, enabled=False):
            out = _attend(query, key, value, tables, span, mask, scale, dropout)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        fault = _faults[_case(query, tables, dropout)] = _reason(error)
        _say(query, fault)
        return None
    if out is None:
        _say(query, _GAPS)
    return out


def _case(query: Tensor, tables: Tables, dropout: float) -> tuple:
    """Everything that decides which kernels are compiled; the length counts by the power of two above it."""
    doublings = max(_SHORTEST, query.shape[2] - 1).bit_length()
    kinds = tuple(table is not None for table in tables)
    return query.device, query.dtype, query.shape[3], doublings, kinds, torch.is_grad_enabled(), dropout > 0


def _absent(device: torch.device) -> bool:
    there = all(importlib.util.find_spec(name) for name in ("triton", "disentangled_flash"))
    return not there or torch.cuda.get_device_capability(device) < _OLDEST


def _say(query: Tensor, why: str | None) -> None:
    """Says a fault once for each device and precision; padding with gaps, which concerns one batch, counts apart."""
    case = query.device, query.dtype, why == _GAPS
    if why and case not in _said:
        _said.add(case)
        where = f"DeBERTa's attention on {query.device} in {str(query.dtype)[6:]}"
        say(f"{where}: torch's kernel, not disentangled-flash's ({why})")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _fault(like: Tensor, tables: Tables, scale: float, dropout: float) -> str | None:
    """The reason not to use the kernels: they raise, or their values differ from fb3's own; none if they are right.

    The trial takes two random essays, one of them padded, in the shapes and precision of the queries `like`: the
    kernels compiled for it are the ones used afterwards. Dropout and the backward pass run too, since their kernels may
    raise, but only the tests compare their values. The random state is restored.
    """
    device, dtype, width, grad = like.device, like.dtype, like.shape[3], torch.is_grad_enabled()
    with (
        torch.random.fork_rng(range(torch.cuda.device_count())),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),  # hides the trial from checkpointing
    ):
        torch.manual_seed(0)
        tokens = min(max(like.shape[2], _TRIAL_TOKENS[0]), _TRIAL_TOKENS[1])
        mask = torch.ones(2, 1, 1, tokens, device=device)
        mask[1, ..., tokens // 2 + 1 :] = 0
        shapes = [(2, tokens, _TRIAL_HEADS, width)] * 3 + [(2 * _TRIAL_SPAN[0], _TRIAL_HEADS, width)] * 2
        drawn = [torch.randn(shape).to(device, dtype).requires_grad_(grad) for shape in shapes]
        states = [t.transpose(1, 2) for t in drawn[:3]]
        given = tuple(None if table is None else t for table, t in zip(tables, drawn[3:], strict=True))
        try:
            found = out = _attend(*states, given, _TRIAL_SPAN, mask, scale, 0.0)
            if dropout:
                out = _attend(*states, given, _TRIAL_SPAN, mask, scale, dropout)
            if grad:
                out.sum().backward()
            with torch.no_grad():
                exact, rounded = (_own_values(states, given, mask, scale, kind) for kind in (torch.float64, dtype))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return _reason(error)
    real = mask[:, 0, 0].bool()
    off, usual = ((values.detach().double() - exact)[real].norm().item() for values in (found, rounded))
    least = max(_LEAST, torch.finfo(dtype).eps) * exact[real].norm().item()
    right = off <= _TIMES * usual + least  # False for NaN too
    return None if right else f"off by {off:.1e} in the values, fb3's own by {usual:.1e}"


def _own_values(states: list[Tensor], tables: Tables, mask: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """fb3's own attention for the trial in a precision, (B, T, H · D)."""
    states, tables = [t.to(dtype) for t in states], tuple(None if t is None else t.to(dtype) for t in tables)
    rows = rows_by_distance(states[0].shape[2], *_TRIAL_SPAN, mask.device)
    return disentangled_attention(*states, tables, rows, mask[:, 0, 0], scale, 0.0).transpose(1, 2).flatten(2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, span: Span, mask: Tensor, scale: float, dropout: float
) -> Tensor | None:
    """Computes `flash_attention`; none for a mask with gaps where a gradient or dropout is wanted.

    The backward kernels for padded batches would be compiled anew for each batch size and length, the kernels for
    packed essays are not. So a batch is passed as packed, just as it lies in memory: the padding behind each essay
    counts as an essay of its own, and nothing is copied.
    """
    from disentangled_flash.training._kernels import training_attention, training_attention_packed

    tokens, grad = query.shape[2], torch.is_grad_enabled()
    first, count, local, band = _plan(tokens, *span, query.device)
    tables = tuple(t if t is None else t[first : first + count].transpose(0, 1) for t in tables)
    # The kernels scale the sum of all products, which may exceed fp16 before that. So in fp16 queries, keys and tables
    # are first multiplied by a power of two near the scale's root, which rounds nothing.
    half = 2.0 ** round(math.log2(scale) / 2) if query.dtype == torch.float16 else 1.0
    if half != 1:
        query, key, tables = query * half, key * half, tuple(t if t is None else t * half for t in tables)
    settings: dict[str, Any] = {
        "score_scale": scale / half**2,
        "strict_fp32": not torch.backends.cuda.matmul.allow_tf32,
        "dropout_p": dropout,
        "gradient_band": band,
        **_schedules(query, grad),
    }
    if not grad and not dropout:
        seen = mask[:, 0, 0].bool().contiguous()
        with _current(query.device):
            return training_attention(query, key, value, *tables, local, seen, has_padding=True, **settings)
    pieces = _pieces(mask)
    if pieces is None:
        return None
    row = [states.transpose(1, 2).flatten(0, 1).transpose(0, 1) for states in (query, key, value)]  # (H, B · T, D)
    with _current(query.device):
        out = training_attention_packed(*row, *tables, local, pieces, max_seqlen=tokens, **settings)
    return out.unflatten(0, (-1, tokens))


def _current(device: torch.device) -> AbstractContextManager:
    """Makes a GPU the current one: Triton launches there, not where the tensors are. Autograd does it by itself."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _schedules(query: Tensor, grad: bool) -> dict[str, Any]:
    """Tiles and warps by the library's heuristic: its autotuner would compile dozens of kernels."""
    from disentangled_flash.tuning import DeviceResources, heuristic_config

    pick = partial(
        heuristic_config,
        sequence_length=query.shape[2],
        head_dim=query.shape[3],
        dtype=str(query.dtype)[6:],
        batch_heads=None,  # a number would compile other kernels for small batches
        resources=DeviceResources.current(query.device),
    )
    if not grad:
        return {"forward_config": pick(phase="inference")}
    phases = {"forward_config": "training_forward", "dq_config": "backward_dq", "dkv_config": "backward_dkv"}
    return {name: pick(phase=phase) for name, phase in phases.items()}


@lru_cache(maxsize=256)
def _plan(tokens: int, span: int, buckets: int, farthest: int, device: torch.device) -> tuple[int, int, Tensor, Any]:
    """The part of a table that T tokens need: its first row, its number of rows, each distance's row in it, (2T − 1,).

    Fourth is the library's `gradient_band`, by which the backward pass writes each row's gradient once.
    """
    from disentangled_flash.position import gradient_band

    with torch.inference_mode(False), torch.no_grad():  # no inference tensors: autograd will save them
        rows = rows_by_distance(tokens, span, buckets, farthest, torch.device("cpu"))[1]
        first, last = int(rows[0]), int(rows[-1])
        count = min(-(-(last + 1 - first) // _ALIGNED) * _ALIGNED, 2 * span)
        first = min(first, 2 * span - count)
        local = (rows - first).int().to(device)
        return first, count, local, gradient_band(local, device)


def _pieces(mask: Tensor) -> Tensor | None:
    """The starts of essays, and of each one's padding, among B · T tokens, (2B + 1,); none for a mask with gaps.

    Reading the mask waits for the GPU, so it is done once a forward pass: all layers get the same mask.
    """
    global _last
    last = _last
    if last is None or last[0]() is not mask:
        with torch.inference_mode(False), torch.no_grad():
            _last = last = weakref.ref(mask), _find_pieces(mask[:, 0, 0].bool())
    return last[1]


def _find_pieces(seen: Tensor) -> Tensor | None:
    essays, tokens = seen.shape
    if bool((seen[:, 1:] & ~seen[:, :-1]).any()):
        return None
    starts = torch.arange(0, essays * tokens, tokens, device=seen.device)
    pieces = torch.stack([starts, starts + seen.sum(1)], 1).flatten()
    return torch.cat([pieces, pieces.new_tensor([essays * tokens])]).int()
