"""Tokens a batch at inference: the recipe's, or as many as a GPU's memory holds, judged by the first batch's need."""

from collections.abc import Hashable, MutableMapping
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.system.devices import Precision
from fb3.system.progress import say

_TOKENS = {"cpu": 4096}  # measured: larger batches fall out of a CPU's cache
_TOKENS_UNMEASURED = 16384  # on devices other than CPUs and CUDA's
_FIRST, _MOST = 8192, 131_072  # on CUDA: the first batch, and the largest; beyond it a full chip gains nothing
_SHARE = 0.7  # share of the free memory; the rest is for other shapes, whose kernels need larger workspaces


class MemoryMeter(Protocol):
    """Measures the memory that a batch takes on a device, in bytes."""

    def start(self) -> None:
        """Begins the measuring of a batch."""

    def used(self) -> int:
        """The peak since `start`, without the memory in use before."""

    def free(self) -> int:
        """The memory that a batch could still take."""


class CudaMeter:
    """Measures by the counts of torch's allocator, which are known without waiting for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def used(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def free(self) -> int:
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + held


class Measured(NamedTuple):
    """A measured budget: tokens a batch, and the tokens of the longest essay that it holds for."""

    tokens: int
    longest: int


_MEASURED: dict[Hashable, Measured] = {}  # in this process, so that the next fold need not measure


class Budget:
    """Tokens a batch, padding included.

    Args:
        tokens: the budget to begin with.
        longest: tokens of the longest essay. Its tokens take the most memory each, since attention grows with length.
        meter: measures the first batch, which decides on the others; none: `tokens` hold until memory runs out.
        key: names all that a token's memory depends on; the budget is remembered by it; none: it is forgotten.
        measured: remembered budgets by key.
    """

    def __init__(
        self,
        tokens: int,
        longest: int = 0,
        meter: MemoryMeter | None = None,
        key: Hashable = None,
        measured: MutableMapping[Hashable, Measured] = _MEASURED,
    ) -> None:
        self.tokens, self._longest = tokens, longest
        self._meter, self._key, self._measured = meter, key, measured
        known = None if key is None else measured.get(key)
        if known and known.longest >= longest:
            self.tokens, self._longest, self._meter = known.tokens, known.longest, None

    @property
    def measures(self) -> bool:
        """Whether the next batch decides on the size of the batches after it."""
        return self._meter is not None

    def begin(self) -> None:
        """Called before a batch is computed."""
        if self._meter:
            self._meter.start()

    def end(self, tokens: int) -> None:
        """Called after a batch of so many tokens, of the longest essays. A much smaller batch decides nothing."""
        if self._meter and 2 * tokens >= self.tokens:
            settled = tokens_within(self._meter.used(), tokens, self._meter.free())
            self._meter = None
            self._settle(settled)

    def halve(self, lengths: np.ndarray, name: str, window: int | None = None) -> None:
        """Halves the budget after memory ran out, or the failed batch's tokens where they are fewer; that is said.

        `lengths` are the tokens of each essay of that batch, `window` the most tokens of a window, None without
        windows. An Fb3Error where the batch was one essay, or one window of it.
        """
        longest = int(lengths.max())
        at_once = min(self.tokens, longest * len(lengths))
        if len(lengths) == 1 and (window is None or at_once <= window):
            kind, tokens = ("essay", longest) if window is None else ("window", min(window, longest))
            raise Fb3Error(f"{name}: memory does not suffice for one {kind} of {tokens} tokens")
        self._meter = None
        self._settle(max(1, at_once // 2))
        count = f"{len(lengths)} essays" if len(lengths) > 1 else "one essay"
        say(f"{name}: out of memory with {count} of {longest} tokens; now {self.tokens} tokens a batch")

    def _settle(self, tokens: int) -> None:
        self.tokens = tokens
        if self._key is not None:
            self._measured[self._key] = Measured(tokens, self._longest)


def tokens_within(used: int, tokens: int, free: int) -> int:
    """Tokens a batch that take a share of the `free` bytes, within bounds, after one of `tokens` used `used` bytes."""
    return max(_FIRST, min(int(_SHARE * free * tokens) // max(used, 1), _MOST))


def open_budget(
    scorer: Scorer, device: torch.device, precision: Precision, longest: int, given: int | None = None
) -> Budget:
    """The budget for a scorer on a device, in the precision it computes in, and a longest essay of `longest` tokens.

    `given` are the recipe's tokens; with None the device decides, on CUDA its memory.
    """
    if device.type != "cuda":
        return Budget(given or _TOKENS.get(device.type, _TOKENS_UNMEASURED))
    towers = scorer.towers().values()
    kinds = [(t.encoder.config.to_json_string(use_diff=False), t.encoder.dtype, t.reads) for t in towers]
    key = (str(device), precision, given, *kinds)
    return Budget(given or _FIRST, longest, None if given else CudaMeter(device), key)
