"""Linear layers in int8 for inference on a CPU, about twice as fast as in bf16. The rest of an encoder stays as it is.

- Activations become uint8 by static scales, measured beforehand on training essays: a scale for each batch would make
  an essay's score depend on the essays beside it. Weights become int8 by a scale for each row (Jacob et al. 2018,
  arXiv:1712.05877).
- An encoder has a few channels of large numbers, and one scale for all would round the other channels to few levels. So
  each channel is divided by the square root of its largest number, and its weights are multiplied by that root, which
  changes no product (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).
- Rounding shifts the mean of the vectors that the head reads. The mean shift is measured and added back (after Nagel
  et al. 2019, arXiv:1906.04721, who correct each layer).
"""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fb3.errors import one_line
from fb3.models.kernels.packed_linear import TOKENS, linears_before_gelu, linears_of, replace, set_modules
from fb3.models.scorer import Scorer
from fb3.system.progress import say

# The least and largest input of each linear layer, by its name in the scorer: (2, C) for each channel, or (2, 1) where
# the input comes in uint8 from the layer before; and the shift.
Scales = dict[str, Tensor]
SHIFT = "shift"  # the key of the correction that is added to the vectors the head reads, (D,)
_LEVELS = 255
_SAMPLED = 2**16  # numbers sampled from each batch, to search the best range with
_TINY = torch.finfo(torch.float32).tiny
_FLATTEST = 1e-3  # least share of the largest channel: a channel that was 0 in the measurement must not be divided by 0


class InputScale(NamedTuple):
    """How a layer's input becomes uint8: states · factor / scale + zero, with a factor for each channel, (C,)."""

    factor: Tensor
    scale: float
    zero: int

    def same(self, other: "InputScale") -> bool:
        return self[1:] == other[1:] and torch.equal(self.factor, other.factor)


class Quantiser:
    """Turns float states into uint8; remembers the last result, since query, key and value read the same states."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, InputScale, Tensor] | None = None
        self._buffer = torch.empty(0)  # reused: fresh memory of that size costs more than the arithmetic

    def __call__(self, states: Tensor, scale: InputScale) -> Tensor:
        if self._last is None or self._last[0] is not states or not self._last[1].same(scale):
            if self._buffer.numel() < states.numel():
                self._buffer = torch.empty(states.numel())
            exact = self._buffer[: states.numel()].view(states.shape).copy_(states).mul_(scale.factor)
            quantised = torch.quantize_per_tensor(exact, scale.scale, scale.zero, torch.quint8)
            # A view of its bytes: int_repr() copies them, which takes longer than the quantisation itself.
            levels = torch.empty(0, dtype=torch.uint8)
            levels.set_(quantised.untyped_storage(), 0, quantised.shape, quantised.stride())
            self._last = states, scale, levels
        return self._last[2]


class Int8Linear(nn.Module):
    """A linear layer in int8 by oneDNN, without gradients.

    Args:
        linear: the layer to copy; it is not needed afterwards.
        bounds: least and largest number of its input, (2, C) or (2, 1).
        quantiser: shared by all layers of the encoder.
        activation: computed on the output, "none" or "gelu" (the exact one).
        out: bounds of the next int8 layer's input, (2, 1): the output then goes on in uint8; none: it has the linear
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
        self._scales = weight.abs().amax(1).clamp(min=_TINY) / 127  # one for each row
        self._zeros = torch.zeros(self.out_features, dtype=torch.int64)
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, [TOKENS, self.in_features])
        self._bias = None if linear.bias is None else linear.bias.detach().float()
        self._in = InputScale(1 / smooth, *_scale_and_zero(bounds / smooth))
        self._quantiser, self._activation = quantiser, activation
        self._out = (1.0, 0, linear.weight.dtype) if out is None else (*_scale_and_zero(out), torch.uint8)

    def forward(self, states: Tensor) -> Tensor:
        if states.dtype != torch.uint8:
            states = self._quantiser(states, self._in)
        inputs = states, self._in.scale, self._in.zero
        weights = self._weight, self._scales, self._zeros, self._bias
        return torch.ops.onednn.qlinear_pointwise(*inputs, *weights, *self._out, self._activation, [], "none")


class BiasCorrection(nn.Module):
    """Corrects the pooled vector by the mean shift of rounding, (D,), before the scorer's own `beside` reads it."""

    def __init__(self, beside: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.beside, self.width = beside, beside.width
        self._shift = shift

    def forward(self, pooled: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return self.beside(pooled + self._shift, batch)


def observe(scorer: Scorer, run: Callable[[], object]) -> tuple[Scales, Tensor]:
    """Measures the inputs of the linear layers in a float32 scorer's encoders, and the vectors that its head reads.

    `run` predicts essays of its training set. Returns the scales, without the shift, and the vectors' mean, (D,).
    """
    observers: dict[str, _RangeObserver] = {}
    vectors: list[Tensor] = []
    hooks = [scorer.beside.register_forward_pre_hook(lambda _, given: vectors.append(given[0]))]
    for prefix, tower in scorer.towers().items():
        after_gelu = {_next(name) for name, _ in linears_before_gelu(tower.encoder)}
        for name, linear in linears_of(tower.encoder).items():
            observers[prefix + name] = observer = _RangeObserver(name in after_gelu)
            hooks.append(linear.register_forward_pre_hook(observer))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: o.bounds() for name, o in observers.items() if o.ranges}, torch.cat(vectors).mean(0)


class _RangeObserver:
    """A forward pre-hook that notes the range of a linear layer's input; with `per_tensor`, one for all channels."""

    def __init__(self, per_tensor: bool) -> None:
        self.per_tensor = per_tensor
        self.ranges: list[Tensor] = []  # (2, C) for each batch
        self._sample: list[Tensor] = []

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        states = given[0].reshape(-1, given[0].shape[-1])
        self.ranges.append(torch.stack([states.amin(0), states.amax(0)]))
        if self.per_tensor:
            self._sample.append(states.flatten()[:: max(1, states.numel() // _SAMPLED)].clone())

    def bounds(self) -> Tensor:
        """The range of each channel, (2, C), or of all, (2, 1).

        The range of all is cut where the mean square error is least: clipping a few large numbers leaves the many small
        ones more levels.
        """
        ranges = torch.stack(self.ranges).float()
        least, most = ranges[:, 0].amin(0), ranges[:, 1].amax(0)
        if not self.per_tensor:
            return torch.stack([least, most])
        sample, whole = torch.cat(self._sample).float(), torch.stack([least.amin(), most.amax()])[:, None]
        cuts = whole.abs().amax() * 0.9 ** torch.arange(30.0)
        return min((whole.clamp(-cut, cut) for cut in cuts), key=lambda bounds: _error(sample, bounds))


def _error(numbers: Tensor, bounds: Tensor) -> float:
    """The mean square error of numbers rounded to uint8 within the bounds."""
    scale, zero = _scale_and_zero(bounds)
    rounded = (numbers / scale).round().add(zero).clamp(0, _LEVELS).sub(zero) * scale
    return float((rounded - numbers).square().mean())


@torch.inference_mode()
def quantise(scorer: Scorer, scales: Scales) -> bool:
    """Replaces the linear layers that have scales by int8 ones, in place, and adds the shift before the head.

    The scorer is on a CPU, and the rest of its encoders keeps its precision. Returns False, with nothing changed, where
    torch lacks the kernels or an encoder reads its layers' weights itself; that is said.
    """
    done: list[tuple[nn.Module, dict[str, nn.Module]]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates quantize_per_tensor; without it bf16 computes
            for prefix, tower in scorer.towers().items():
                done.append((tower.encoder, replace(tower.encoder, _in_int8(tower.encoder, scales, prefix))))
            scorer.beside = BiasCorrection(scorer.beside, scales[SHIFT])
    except Exception as error:  # anything may be raised: the encoder's own code runs here; int8 is for speed only
        for encoder, former in done:
            set_modules(encoder, former)
        say(f"{type(scorer.encoder).__name__}: not in int8 ({one_line(error)})")
        return False
    return True


def _in_int8(encoder: nn.Module, scales: Scales, prefix: str) -> dict[str, nn.Module]:
    """The int8 layers by name, and an identity for each GELU that is computed inside one."""
    linears, quantiser = linears_of(encoder), Quantiser()
    bounds = {name: scales[prefix + name] for name in linears if prefix + name in scales}
    gelus = {name: gelu for name, gelu in linears_before_gelu(encoder) if name in bounds and _next(name) in bounds}
    replacements: dict[str, nn.Module] = {gelu: nn.Identity() for gelu in gelus.values()}
    for name, own in bounds.items():
        activation_and_out = ("gelu", bounds[_next(name)]) if name in gelus else ()
        replacements[name] = Int8Linear(linears[name], own, quantiser, *activation_and_out)
    return replacements


def _next(name: str) -> str:
    """The name of the linear layer that reads the output of the GELU after `name`."""
    return name.removesuffix("intermediate.dense") + "output.dense"


def _scale_and_zero(bounds: Tensor) -> tuple[float, int]:
    """Scale and zero point of uint8 for a range; the zero point is an integer, so that 0 stays exact."""
    least, most = min(float(bounds[0].amin()), 0.0), max(float(bounds[1].amax()), 0.0)
    scale = max(most - least, _TINY) / _LEVELS
    return scale, round(-least / scale)
