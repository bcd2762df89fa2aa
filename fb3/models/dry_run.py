"""A trial of an encoder before a training: it encodes a few texts under made-up weights, and computes one gradient.

Families of transformers differ in the inputs they require beside tokens and a mask, in the effect of padding on their
states, and in the precisions they can compute in. A trial is surer than a list of names. It reads no weight of the
backbone, so that one which cannot be used is refused before its download.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fb3.errors import Fb3Error, one_line
from fb3.models.layer_stack import longest_input
from fb3.models.towers import Tower
from fb3.system.devices import Precision, out_of_memory

_LENGTHS = (13, 6, 2, 1)  # tokens of each text
_TOLERANCE = 1e-4  # share of the largest state: rounding changes 1e-6 of it, padding that is attended to 4e-3 and more
_PERIOD = 2**16 + 1  # made-up weights repeat after so many numbers
_DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}


@torch.no_grad()
def make_up_weights(encoder: nn.Module) -> None:
    """Gives an encoder weights that keep its states' size, in little more memory than its largest parameter takes.

    Parameters of one fan-in are views into one repeated pattern of random numbers.
    """
    noise, sizes, made = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0)), {}, {}
    for parameter in encoder.parameters():
        fan_in = _fan_in(parameter)
        sizes[fan_in] = max(sizes.get(fan_in, 0), parameter.numel())
    patterns = {fan_in: (noise * fan_in**-0.5).repeat(size // _PERIOD + 2) for fan_in, size in sizes.items()}
    for place, (name, parameter) in enumerate(encoder.named_parameters()):
        start = 101 * place % _PERIOD
        values = patterns[_fan_in(parameter)][start : start + parameter.numel()].view(parameter.shape)
        of_norm = parameter.ndim < 2 and name.endswith("weight")
        made[id(parameter)] = nn.Parameter(1 + values if of_norm else values, parameter.requires_grad)
    for module in encoder.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]


def _fan_in(parameter: Tensor) -> int:
    """The numbers that a layer sums for one output; 100 for a bias or a norm, whose deviation is then 0.1."""
    return 100 if parameter.ndim < 2 else max(1, parameter.numel() // max(1, len(parameter)))


def padding_for(tower: Tower, longest: int, name: str) -> int | None:
    """The tokens that each input has to be padded to, so that a prediction does not depend on the rest of its batch.

    Tries a tower, on the CPU and in float32, with texts of at most `longest` tokens. The result is None where padding
    changes nothing, as in most families, else `longest`; an Fb3Error, which begins with `name`, where neither works.
    """
    tower.encoder.eval()
    why = ""
    for to in (None, longest):
        try:
            difference = _largest_difference(tower, [min(length, longest) for length in _LENGTHS], to)
        except Exception as error:  # anything may be raised: the encoder's own code runs here
            _raise_if_out_of_memory(error)
            why = one_line(error)
            continue
        if difference <= _TOLERANCE:
            return to
        why = f"the same text's states differ by {difference:.1%} from call to call, or by the texts beside it"
    raise Fb3Error(
        f"{name}: {type(tower.encoder).__name__} cannot be used: given token ids and a mask alone, {longest} tokens at "
        f"most, it fails ({why}); set in its config.json what it asks for, or take another backbone"
    )


@torch.no_grad()
def _largest_difference(tower: Tower, lengths: Sequence[int], to: int | None) -> float:
    """The largest difference between texts' states alone and in one batch, relative to the largest state.

    Texts of `lengths` tokens are padded to `to`; with None, to the longest in the batch, and alone not at all. A
    ValueError where the states have another shape than poolings need.
    """
    config = tower.encoder.config
    mask = (torch.arange(to or max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = _tokens(config, mask.numel()).view(mask.shape)
    ids = torch.where(mask.bool(), ids, config.pad_token_id)
    together = _states(tower, ids, mask)
    if together.shape != (want := (*mask.shape, config.hidden_size)):
        raise ValueError(f"states of the shape {tuple(together.shape)}; want {want}, by config.json's hidden_size")
    size, largest = float(together.abs().max()), 0.0
    for row, length in enumerate(lengths):
        cut = to or length
        alone = _states(tower, ids[row : row + 1, :cut], mask[row : row + 1, :cut])
        largest = max(largest, float((alone[0, :length] - together[row, :length]).abs().max()))
    return largest / size


def _states(tower: Tower, ids: Tensor, mask: Tensor) -> Tensor:
    """The last states, (B, T, D); fails if the output lacks the part that the pooling reads."""
    out = tower.encode(ids, mask)
    tower.read(out)
    return out.last_hidden_state


def _tokens(config: object, count: int) -> Tensor:
    """Token ids without padding, no two neighbours equal or consecutive."""
    ids = (torch.arange(count) * 7 + 5) % config.vocab_size
    return torch.where(ids == config.pad_token_id, (ids + 3) % config.vocab_size, ids)


def check_length(tower: Tower, longest: int, key: str) -> None:
    """Refuses inputs longer than the encoder's table of positions: an Fb3Error that names the recipe's `key`."""
    try:
        limit = longest_input(tower.encoder)
    except Exception as error:  # an encoder that takes no short texts: `padding_for` decides
        _raise_if_out_of_memory(error)
        return
    if limit is not None and longest > limit:
        raise Fb3Error(f"{key}={longest}: the encoder has positions for {limit} tokens only")


def precision_problem(tower: Tower, precision: Precision, device: torch.device, longest: int) -> str:
    """The reason why a training in a precision would fail; empty if a forward and a backward pass work.

    The tower has made-up weights, and is moved to the device; `longest` is the most tokens of an input.
    """
    if precision == "fp16" and keeps_fp32(tower.encoder):
        return f"{type(tower.encoder).__name__} is not made for fp16"
    mask = torch.ones(1, longest, dtype=torch.long, device=device)
    try:
        tower.encoder.to(device).train()
        ids = _tokens(tower.encoder.config, longest)[None].to(device)
        with torch.enable_grad(), torch.autocast(device.type, _DTYPE.get(precision), enabled=precision in _DTYPE):
            last = tower.encode(ids, mask).last_hidden_state
            if last.requires_grad:
                weights = [p for p in tower.encoder.parameters() if p.requires_grad]
                torch.autograd.grad(last.float().square().mean(), weights, allow_unused=True)
    except Exception as error:
        if not out_of_memory(error):  # a training handles that itself
            return one_line(error)
    return ""


def keeps_fp32(encoder: nn.Module) -> bool:
    """Whether transformers keeps some of an encoder's modules in fp32, since they exceed the range of fp16 (T5)."""
    return bool(getattr(encoder, "_keep_in_fp32_modules", None))


def _raise_if_out_of_memory(error: Exception) -> None:
    if out_of_memory(error):
        raise error
