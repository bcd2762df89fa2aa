"""Disentangled attention by disentangled-flash's Triton kernels, forward and backward, where they run and are right.

Nothing of (T, T) is stored. Optional (`pip install 'fb3[flash]'`), for NVIDIA GPUs from compute capability 8.0 on,
since Triton has no T4; elsewhere nothing of it is imported. Checked before the
first use by `flash_check`.
"""

import importlib.util
import math
import weakref
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from fb3.models.kernels.disentangled_attention import Tables, rows_by_distance
from fb3.models.kernels.flash_check import Span, fault_of, words
from fb3.system.progress import say

_DEVICES = ("cuda",)
_OLDEST = (8, 0)  # compute capability
_SHORT, _LONGEST = 63, 8192  # tokens: up to one more all are of one length for the kernels; they promise no more
_ALIGNED = 8  # rows of a table; products with other numbers of rows are slow
_GAPS = "there is padding between an essay's tokens"

_faults: dict[tuple, str | None] = {}  # why not, by case
_said: set[tuple] = set()
_last: tuple[weakref.ref, Tensor | None] | None = None  # a forward's mask and its pieces, the same for all layers


def flash_runs(query: Tensor, kinds: tuple[bool, bool], scale: float, dropout: float) -> bool:
    """Whether the kernels are there and right for queries (B, H, T, D) like these; what is wrong is said, once.

    Args:
        kinds: whether there are position keys, position queries.
        scale: of the sum of all products.
        dropout: of the probabilities.
    """
    if query.device.type not in _DEVICES or query.shape[2] > _LONGEST:
        return False
    case = _case(query, kinds, dropout)
    if case not in _faults:
        if _absent(query.device):  # then there is nothing to be said: it is optional
            _faults[case] = "absent"
        else:
            _faults[case] = fault_of(_attend, query, kinds, scale, dropout, table_scale(query.dtype, scale))
            _say(query, _faults[case])
    return _faults[case] is None


def table_scale(dtype: torch.dtype, scale: float) -> float:
    """What the tables are to be multiplied by.

    The kernel scales the sum of all products, which may be too large for fp16 before. There queries, keys and tables
    carry a power of two near the scale's root, which costs no digits.
    """
    return 2.0 ** round(math.log2(scale) / 2) if dtype == torch.float16 else 1.0


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, span: Span, mask: Tensor, scale: float, dropout: float
) -> Tensor | None:
    """Attention with relative positions, as `disentangled_attention`.

    Args:
        query, key, value: (B, H, T, D).
        tables: position keys and queries (R, H, D), each or none, times `table_scale`.
        span: how distances become rows.
        mask: keys that may be seen, (B, 1, 1, T).
        scale: of the sum of all products.
        dropout: of the probabilities.

    Returns:
        (B, T, H · D); none where it cannot, which is said once.
    """
    try:
        with torch.autocast(query.device.type, enabled=False):
            out = _attend(query, key, value, tables, span, mask, scale, dropout)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        case = _case(query, tuple(table is not None for table in tables), dropout)
        _faults[case] = words(error)
        _say(query, _faults[case])
        return None
    if out is None:
        _say(query, _GAPS)
    return out


def _case(query: Tensor, kinds: tuple[bool, bool], dropout: float) -> tuple:
    """Other kernels are compiled for each; for lengths, about each doubling."""
    doublings = max(_SHORT, query.shape[2] - 1).bit_length()
    return query.device, query.dtype, query.shape[3], doublings, kinds, torch.is_grad_enabled(), dropout > 0


def _absent(device: torch.device) -> bool:
    there = all(importlib.util.find_spec(name) for name in ("triton", "disentangled_flash"))
    return not there or torch.cuda.get_device_capability(device) < _OLDEST


def _say(query: Tensor, why: str | None) -> None:
    """Once for a device and precision, whatever else is wrong there."""
    case = query.device, query.dtype, why == _GAPS
    if why and case not in _said:
        _said.add(case)
        where = f"DeBERTa's attention on {query.device} in {str(query.dtype)[6:]}"
        say(f"{where}: torch's kernel, not disentangled-flash's ({why})")


def _attend(
    query: Tensor, key: Tensor, value: Tensor, tables: Tables, span: Span, mask: Tensor, scale: float, dropout: float
) -> Tensor | None:
    """As `flash_attention`; none for a mask with gaps where a gradient or dropout is wanted.

    The kernels of the way back would be compiled anew for each batch size and length, but not those for essays packed
    in a row. So these get the padding behind each essay as an essay of its own, and nothing is copied.
    """
    from disentangled_flash.training._kernels import training_attention, training_attention_packed

    tokens, grad = query.shape[2], torch.is_grad_enabled()
    first, count, local, band = _plan(tokens, *span, query.device)
    tables = tuple(t if t is None else t[first : first + count].transpose(0, 1) for t in tables)
    if (half := table_scale(query.dtype, scale)) != 1:
        query, key = query * half, key * half
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
    """Makes a GPU the current one: Triton launches there, wherever the tensors are. Autograd's threads have theirs."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _schedules(query: Tensor, grad: bool) -> dict[str, Any]:
    """Tiles and warps by the library's rules of thumb: to try them out would compile dozens of kernels."""
    from disentangled_flash.tuning import DeviceResources, heuristic_config

    pick = partial(
        heuristic_config,
        sequence_length=query.shape[2],
        head_dim=query.shape[3],
        dtype=str(query.dtype)[6:],
        batch_heads=None,  # few essays would get kernels of their own
        resources=DeviceResources.current(query.device),
    )
    if not grad:
        return {"forward_config": pick(phase="inference")}
    phases = {"forward_config": "training_forward", "dq_config": "backward_dq", "dkv_config": "backward_dkv"}
    return {name: pick(phase=phase) for name, phase in phases.items()}


@lru_cache(maxsize=256)
def _plan(tokens: int, span: int, buckets: int, farthest: int, device: torch.device) -> tuple[int, int, Tensor, Any]:
    """The first row of a table that T tokens need, how many, which of these each distance has, (2T − 1,), and what
    lets the gradient of each be written once."""
    from disentangled_flash.position import gradient_band

    with torch.inference_mode(False), torch.no_grad():  # they will be saved for a gradient
        rows = rows_by_distance(tokens, span, buckets, farthest, torch.device("cpu"))[1]
        first, last = int(rows[0]), int(rows[-1])
        count = min(-(-(last + 1 - first) // _ALIGNED) * _ALIGNED, 2 * span)
        first = min(first, 2 * span - count)
        local = (rows - first).int().to(device)
        return first, count, local, gradient_band(local, device)


def _pieces(mask: Tensor) -> Tensor | None:
    """Where essays, and the padding behind each, begin among B · T tokens, (2B + 1,); none for a mask with gaps.

    A GPU is waited for, so once a forward.
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
