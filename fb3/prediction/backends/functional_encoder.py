"""An encoder as a function of its weights, so that a backend converts it once for all folds."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from fb3.models.kernels.deberta import eager_attention
from fb3.models.towers import layer_states

_ATTRIBUTE = {"last": "last_hidden_state", "pooler": "pooler_output"}


def as_output(reads: str, states: Sequence[Tensor]) -> SimpleNamespace:
    """States (B, T, D), or vectors (B, D), as an encoder's output that has only the part that the pooling reads."""
    if reads == "layers":
        return SimpleNamespace(hidden_states=tuple(states), last_hidden_state=states[-1])
    return SimpleNamespace(**{_ATTRIBUTE[reads]: states[0]})


class FunctionalEncoder(nn.Module):
    """`forward(input_ids, attention_mask, *weights)` returns the states that a pooling reads, as a tuple.

    Attention is traced in a form that a library can convert: in fp32 blocked attention is torch's own, and DeBERTa's
    fused one gives way to transformers'.

    Args:
        encoder: in float32, on the CPU, in eval mode.
        reads: the part of its output that the pooling reads.
    """

    def __init__(self, encoder: nn.Module, reads: str) -> None:
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, so that it is no submodule: tracing skips its weights, the slow part
        self.reads = reads
        buffers = (buffer for buffer in encoder.buffers() if buffer.is_floating_point())
        self.weights = [weight.detach() for weight in (*encoder.parameters(), *buffers)]
        shapes = [tuple(weight.shape) for weight in self.weights]
        self.key = f"{reads} {shapes} {encoder.config.to_json_string(use_diff=False)}"  # equal keys, equal graphs

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Ids and mask (B, T), and tensors in the order of `weights`, to states; without tensors, the encoder's own."""
        encoder = self._encoder[0]
        with _replaced(encoder, weights), eager_attention(encoder), _unscripted(encoder):
            more = {"output_hidden_states": True} if self.reads == "layers" else {}
            out = encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more)
        return layer_states(out) if self.reads == "layers" else (getattr(out, _ATTRIBUTE[self.reads]),)

    def example(self) -> tuple[Tensor, Tensor]:
        """Token ids and mask (2, 9) to trace with, some of it padding, so that no mask is optimised away."""
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[1, 5:] = 0
        return mask * 3 % self._encoder[0].config.vocab_size, mask


@contextmanager
def _replaced(encoder: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Replaces the parameters and floating-point buffers; torch.func, made for this, cannot be traced."""
    buffers = (buffer for buffer in encoder.buffers() if buffer.is_floating_point())
    old = (*encoder.parameters(), *buffers) if weights else ()
    new = {id(tensor): weight for tensor, weight in zip(old, weights, strict=True)}
    places = [(d, name, t) for m in encoder.modules() for d in (m._parameters, m._buffers) for name, t in d.items()]
    try:
        for held, name, tensor in places:
            held[name] = new.get(id(tensor), tensor)
        yield
    finally:
        for held, name, tensor in places:
            held[name] = tensor


@contextmanager
def _unscripted(encoder: nn.Module) -> Iterator[None]:
    """Replaces functions that transformers scripts (DeBERTa's, up to 5.15) by their Python originals.

    A trace keeps the branches of a scripted function, and OpenVINO converts no branch.
    """
    module = vars(sys.modules[type(encoder).__module__])
    scripted = {name: value for name, value in module.items() if isinstance(value, torch.jit.ScriptFunction)}
    module.update({name: getattr(value, "_torchdynamo_inline", value) for name, value in scripted.items()})
    try:
        yield
    finally:
        module.update(scripted)
