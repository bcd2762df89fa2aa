"""Linear layers in int8 for inference on a CPU, about twice as fast as in bf16, with scales measured beforehand.

Scales of what each layer reads are measured on training essays, so that an essay's score depends on no other essay;
those of the weights, one a row, follow from the weights (Jacob et al. 2018, arXiv:1712.05877). An encoder's few
channels of large numbers would cost all others their digits: each channel is divided by the root of its largest number,
and the weights multiplied by it (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438). What rounding shifts on average is
put right in the vectors that the head reads (after Nagel et al. 2019, arXiv:1906.04721, who do so in each layer).

The rest of the encoder stays in the precision it has.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fb3.models.kernels.packed_linear import TOKENS, before_gelu, linears_of, put, replace
from fb3.models.scorer import Scorer
from fb3.system.progress import say

# By a linear layer's name in the scorer, the least and the largest number it reads: (2, C), one of each for a channel,
# or (2, 1) for what comes in uint8 from the layer before it. Beside them the shift.
Scales = dict[str, Tensor]
SHIFT = "shift"  # to be added to the vectors that the head reads, (D,)
_LEVELS = 255
_SAMPLED = 2**16  # numbers a batch, of which the best bounds are told
_TINY = torch.finfo(torch.float32).tiny
_FLATTEST = 1e-3  # of the largest channel: a dead one is not to blow its weights up


class Input(NamedTuple):
    """How a layer's input becomes uint8: states · by / scale + zero; `by` is (C,)."""

    by: Tensor
    scale: float
    zero: int

    def same(self, other: "Input") -> bool:
        return self[1:] == other[1:] and torch.equal(self.by, other.by)


class Quantiser:
    """Float states to uint8. Query, key and value read the same states, so the last ones are remembered."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Input, Tensor] | None = None
        self._room = torch.empty(0)  # kept: new memory of that size costs more than the arithmetic

    def __call__(self, states: Tensor, how: Input) -> Tensor:
        if self._last is None or self._last[0] is not states or not self._last[1].same(how):
            if self._room.numel() < states.numel():
                self._room = torch.empty(states.numel())
            exact = self._room[: states.numel()].view(states.shape).copy_(states).mul_(how.by)
            made = torch.quantize_per_tensor(exact, how.scale, how.zero, torch.quint8)
            # What lies in memory; int_repr() would copy it, which takes longer than all before.
            bare = torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage(), 0, made.shape, made.stride())
            self._last = states, how, bare
        return self._last[2]


class Int8Linear(nn.Module):
    """A linear layer that only predicts, by oneDNN.

    Args:
        linear: may be thrown away afterwards.
        bounds: of what it reads.
        quantiser: of the encoder.
        activation: what follows it, "none" or "gelu" (the exact one).
        out: bounds of the next layer, where that is one of these and takes uint8; none: the output has the linear
            layer's own precision.
    """

    def __init__(
        self,
        linear: nn.Linear,
        bounds: Tensor,
        quantiser: Quantiser,
        activation: str = "none",
        out: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        largest = bounds.abs().amax(0)
        smooth = (largest / largest.amax().clamp(min=_TINY)).clamp(min=_FLATTEST).sqrt()
        weight = linear.weight.detach().float() * smooth
        self._scales = weight.abs().amax(1).clamp(min=_TINY) / 127  # one a row
        self._zeros = torch.zeros(self.out_features, dtype=torch.int64)
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, [TOKENS, self.in_features])
        self._bias = None if linear.bias is None else linear.bias.detach().float()
        self._in = Input(1 / smooth, *_scale_and_zero(bounds / smooth))
        self._quantiser, self._activation = quantiser, activation
        self._out = (1.0, 0, linear.weight.dtype) if out is None else (*_scale_and_zero(out), torch.uint8)

    def forward(self, states: Tensor) -> Tensor:
        if states.dtype != torch.uint8:
            states = self._quantiser(states, self._in)
        given = states, self._in.scale, self._in.zero
        weights = self._weight, self._scales, self._zeros, self._bias
        return torch.ops.onednn.qlinear_pointwise(*given, *weights, *self._out, self._activation, [], "none")


class BiasCorrection(nn.Module):
    """What stands beside the pooled vector, which is put right before.

    Args:
        beside: the scorer's.
        shift: (D,).
    """

    def __init__(self, beside: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.beside, self.width = beside, beside.width
        self._shift = shift

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return self.beside(pooled + self._shift, batch)


def observe(scorer: Scorer, run: Callable[[], object]) -> tuple[Scales, Tensor]:
    """What the linear layers of a scorer's encoders read while something runs, and what the head reads.

    Args:
        scorer: in float32.
        run: predicts essays of those that the scorer was trained on.

    Returns:
        The scales, without the shift; and the mean of the vectors, (D,).
    """
    watches: dict[str, _Watch] = {}
    vectors: list[Tensor] = []
    hooks = [scorer.beside.register_forward_pre_hook(lambda _, given: vectors.append(given[0]))]
    for prefix, tower in scorer.towers().items():
        after = {_next(name) for name, _ in before_gelu(tower.encoder)}
        for name, linear in linears_of(tower.encoder).items():
            watches[prefix + name] = watch = _Watch(name in after)
            hooks.append(linear.register_forward_pre_hook(watch))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: watch.bounds() for name, watch in watches.items() if watch.seen}, torch.cat(vectors).mean(0)


class _Watch:
    """What a linear layer reads, seen before it does.

    Args:
        whole: one scale is to do for all channels.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.seen: list[Tensor] = []  # (2, C) for each batch
        self._sample: list[Tensor] = []

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        states = given[0].reshape(-1, given[0].shape[-1])
        self.seen.append(torch.stack([states.amin(0), states.amax(0)]))
        if self.whole:
            self._sample.append(states.flatten()[:: max(1, states.numel() // _SAMPLED)].clone())

    def bounds(self) -> Tensor:
        """(2, C); or (2, 1), and then those with the least mean square error: cut off, few large numbers leave the many
        small ones more digits."""
        seen = torch.stack(self.seen).float()
        least, most = seen[:, 0].amin(0), seen[:, 1].amax(0)
        if not self.whole:
            return torch.stack([least, most])
        sample, whole = torch.cat(self._sample).float(), torch.stack([least.amin(), most.amax()])[:, None]
        cuts = whole.abs().amax() * 0.9 ** torch.arange(30.0)
        return min((whole.clamp(-cut, cut) for cut in cuts), key=lambda bounds: _error(sample, bounds))


def _error(numbers: Tensor, bounds: Tensor) -> float:
    """The mean square of what rounding changes."""
    scale, zero = _scale_and_zero(bounds)
    rounded = (numbers / scale).round().add(zero).clamp(0, _LEVELS).sub(zero) * scale
    return float((rounded - numbers).square().mean())


@torch.inference_mode()
def quantise(scorer: Scorer, scales: Scales) -> bool:
    """Puts int8 into the place of the linear layers that have scales, in place, and the shift before the head.

    Args:
        scorer: on a CPU; its encoders in the precision that everything else is to keep.
        scales: as `observe` gives them, with the shift.

    Returns:
        False where torch lacks the kernels, or an encoder asks more of its layers than to be called: said, and then
        nothing has changed.
    """
    done: list[tuple[nn.Module, dict[str, nn.Module]]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to drop quantize_per_tensor one day; bf16 computes then
            for prefix, tower in scorer.towers().items():
                done.append((tower.encoder, replace(tower.encoder, _in_int8(tower.encoder, scales, prefix))))
            scorer.beside = BiasCorrection(scorer.beside, scales[SHIFT])
    except Exception as error:  # the encoder's own code runs here, for no more than speed
        for encoder, former in done:
            put(encoder, former)
        say(f"{type(scorer.encoder).__name__}: not in int8 ({' '.join(str(error).split())[:200]})")
        return False
    return True


def _in_int8(encoder: nn.Module, scales: Scales, prefix: str) -> dict[str, nn.Module]:
    """What takes the places of an encoder's linear layers, and of GELU where its output goes on in uint8."""
    linears, quantiser = linears_of(encoder), Quantiser()
    bounds = {name: scales[prefix + name] for name in linears if prefix + name in scales}
    gelus = {name: at for name, at in before_gelu(encoder) if name in bounds and _next(name) in bounds}
    made: dict[str, nn.Module] = {at: nn.Identity() for at in gelus.values()}
    for name, each in bounds.items():
        more = ("gelu", bounds[_next(name)]) if name in gelus else ()
        made[name] = Int8Linear(linears[name], each, quantiser, *more)
    return made


def _next(name: str) -> str:
    """The layer that reads what one before GELU gives."""
    return name.removesuffix("intermediate.dense") + "output.dense"


def _scale_and_zero(bounds: Tensor) -> tuple[float, int]:
    """Of uint8; 0 stays exact."""
    least, most = min(float(bounds[0].amin()), 0.0), max(float(bounds[1].amax()), 0.0)
    scale = max(most - least, _TINY) / _LEVELS
    return scale, round(-least / scale)
