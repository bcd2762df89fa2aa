"""Whether somebody else's disentangled attention computes what ours does, on this device."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fb3.models.kernels.disentangled_attention import Tables, disentangled_attention, rows_by_distance

Span = tuple[int, int, int]  # half of a table's rows, buckets, farthest distance, as `rows_by_distance` takes them
Attend = Callable[[Tensor, Tensor, Tensor, Tables], Tensor]  # queries, keys, values, unscaled tables to (B, T, H · D)
_SPAN = (24, 20, 64)  # so that some distances are beyond the tables, where there are tokens enough
_HEADS = 2
_FEWEST, _MOST = 32, 2048  # tokens: of very few the true gradient is near zero, all found is rounding; else for memory
_TIMES, _LEAST = 3, 1e-5  # how far off it may be: times our own rounding, and of the exact numbers' norm
_DEVIATIONS = 6  # of the share that is dropped
_NAMES = ("query", "key", "value", "to_keys", "to_queries")


def fault_of(
    attend: Callable[..., Tensor | None],
    like: Tensor,
    kinds: tuple[bool, bool],
    scale: float,
    dropout: float,
    table_scale: float,
) -> str | None:
    """What is wrong with it for two random essays, one of them padded: its values, gradients or dropout.

    Nobody's random numbers change.

    Args:
        attend: as `fb3.models.kernels.flash_attention` has it.
        like: queries (B, H, T, D); tokens, width, precision and device are theirs, so that what is compiled now is
            what is wanted next.
        kinds: whether there are position keys, position queries.
        scale: of the sum of all products.
        dropout: of the probabilities.
        table_scale: what `attend` wants the tables multiplied by.
    """
    device, dtype, grad = like.device, like.dtype, torch.is_grad_enabled()
    with (
        torch.random.fork_rng(range(torch.cuda.device_count())),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),  # checkpointing is not to see any of it
    ):
        torch.manual_seed(0)
        tokens = min(max(like.shape[2], _FEWEST), _MOST)
        given = {name: t.to(device, dtype) for name, t in _operands(tokens, like.shape[3], kinds).items()}
        mask = torch.ones(2, 1, 1, tokens, device=device)
        mask[1, ..., tokens // 2 + 1 :] = 0

        def theirs(query: Tensor, key: Tensor, value: Tensor, tables: Tables) -> Tensor:
            torch.manual_seed(1)  # the same dropout each time
            scaled = tuple(t if t is None else t * table_scale for t in tables)
            return attend(query, key, value, scaled, _SPAN, mask, scale, dropout)

        try:
            found = _results(theirs, given, mask, dtype)
            kept = _weights(theirs, given, like.shape[3]).detach() != 0 if dropout else None
            own = partial(_own, mask=mask, scale=scale, kept=kept, dropout=dropout)
            exact, rounded = (_results(own, given, mask, kind) for kind in (torch.float64, dtype))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return words(error)
        return _difference(found, exact, rounded, dtype) or _wrong_rate(kept, mask, dropout)


def words(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _operands(tokens: int, width: int, kinds: tuple[bool, bool]) -> dict[str, Tensor]:
    """Queries, keys and values (B, H, T, D), laid out as (B, T, H, D), and the tables (R, H, D) that there are."""
    states = [torch.randn(2, tokens, _HEADS, width).transpose(1, 2) for _ in range(3)]
    tables = [torch.randn(2 * _SPAN[0], _HEADS, width) for _ in range(2)]
    there = (True, True, True, *kinds)
    return {name: t for name, t, here in zip(_NAMES, [*states, *tables], there, strict=True) if here}


def _call(attend: Attend, given: dict[str, Tensor]) -> Tensor:
    tables = given.get("to_keys"), given.get("to_queries")
    return attend(given["query"], given["key"], given["value"], tables)


def _results(attend: Attend, given: dict[str, Tensor], mask: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Values of real tokens, and what a slope in them gives for all that is given, where gradients are on."""
    leaves = {name: t.to(dtype).detach().requires_grad_(torch.is_grad_enabled()) for name, t in given.items()}
    real = mask[:, 0, 0].bool()
    out = _call(attend, leaves)[real]
    results = {"values": out.detach()}
    if torch.is_grad_enabled():
        slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view_as(out).cos()
        slopes = torch.autograd.grad(out, list(leaves.values()), slope.to(dtype))
        results |= {f"gradient of {name}": slope for name, slope in zip(leaves, slopes, strict=True)}
    return results


def _weights(attend: Attend, given: dict[str, Tensor], width: int) -> Tensor:
    """(B, H, T, T): what the values are weighed with, read off from what becomes of unit vectors, of some width."""
    essays, heads, tokens, _ = given["value"].shape
    units = torch.eye(tokens, -(-tokens // width) * width, dtype=given["value"].dtype, device=given["value"].device)
    found = [
        _call(attend, given | {"value": some.expand(essays, heads, -1, -1)}).unflatten(2, (heads, width))
        for some in units.split(width, 1)
    ]
    return torch.cat(found, 3).transpose(1, 2)[..., :tokens]


def _own(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tables,
    mask: Tensor,
    scale: float,
    kept: Tensor | None,
    dropout: float,
) -> Tensor:
    """fb3's, with the probabilities that are kept."""

    def attend(query: Tensor, key: Tensor, value: Tensor, tables: Tables) -> Tensor:
        scaled = tuple(t if t is None else t * scale for t in tables)
        rows = rows_by_distance(query.shape[2], *_SPAN, query.device)
        return (
            disentangled_attention(query, key, value, scaled, rows, mask[:, 0, 0], scale, 0.0)
            .transpose(1, 2)
            .flatten(2)
        )

    if kept is None:
        return attend(query, key, value, tables)
    given = dict(zip(_NAMES, (query, key, value, *tables), strict=True))
    return ((_weights(attend, given, query.shape[2]) * kept / (1 - dropout)) @ value).transpose(1, 2).flatten(2)


def _difference(
    found: dict[str, Tensor], exact: dict[str, Tensor], rounded: dict[str, Tensor], dtype: torch.dtype
) -> str | None:
    least = max(_LEAST, torch.finfo(dtype).eps)
    for name, truth in exact.items():
        off, usual = ((of[name].double() - truth).norm().item() for of in (found, rounded))
        if not off <= _TIMES * usual + least * truth.norm().item():  # also where it is no number
            return f"off by {off:.1e} in the {name}, fb3's own by {usual:.1e}"
    return None


def _wrong_rate(kept: Tensor | None, mask: Tensor, dropout: float) -> str | None:
    if kept is None:
        return None
    seen = (mask * mask.mT).bool().expand_as(kept)
    share, deviation = kept[seen].double().mean().item(), (dropout * (1 - dropout) / seen.sum().item()) ** 0.5
    wrong = abs(1 - dropout - share) > _DEVIATIONS * deviation
    return f"dropout of {dropout} drops {1 - share:.3f}" if wrong else None
