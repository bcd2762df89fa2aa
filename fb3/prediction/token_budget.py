"""Tokens a batch for inference: the recipe's, or as many as a GPU's memory holds, by what the first batch took."""

from collections.abc import Hashable, MutableMapping
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.system.devices import Precision
from fb3.system.progress import say

_TOKENS = {"cpu": 4096}  # measured: larger batches fall out of a CPU's cache
_TOKENS_UNMEASURED = 16384  # on other devices than these two
_FIRST, _MOST = 8192, 131_072  # on CUDA; more than what fills the chip gains nothing
_SHARE = 0.7  # of the free memory: other shapes get other kernels, with other workspaces


class Meter(Protocol):
    """A device's memory, in bytes."""

    def start(self) -> None:
        """Before a batch."""

    def used(self) -> int:
        """The most that was taken at once since then, without what was taken before."""

    def free(self) -> int:
        """What a batch could still take."""


class CudaMeter:
    """By the counts of torch's allocator, which knows them without waiting for the GPU.

    Args:
        device: a GPU.
    """

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


class Found(NamedTuple):
    """tokens: of a batch. longest: tokens of the longest essay for which that holds."""

    tokens: int
    longest: int


_FOUND: dict[Hashable, Found] = {}  # in this process: the next fold need not measure


class Budget:
    """Tokens a batch, padding included.

    Args:
        tokens: to begin with.
        longest: tokens of the longest essay; a token of it takes the most memory, because attention sees all of them.
        meter: measures the first batch, which decides on the others; none: `tokens` stay until memory runs out.
        key: of what is remembered, all that the memory a token depends on; none: nothing is.
        found: what is remembered.
    """

    def __init__(
        self,
        tokens: int,
        longest: int = 0,
        meter: Meter | None = None,
        key: Hashable = None,
        found: MutableMapping[Hashable, Found] = _FOUND,
    ) -> None:
        self.tokens, self._longest = tokens, longest
        self._meter, self._key, self._found = meter, key, found
        known = None if key is None else found.get(key)
        if known and known.longest >= longest:
            self.tokens, self._longest, self._meter = known.tokens, known.longest, None

    @property
    def measures(self) -> bool:
        """Whether the next batch is to decide on those after it."""
        return self._meter is not None

    def begin(self) -> None:
        """Before the computation of a batch."""
        if self._meter:
            self._meter.start()

    def end(self, tokens: int) -> None:
        """After it: the batch had so many tokens, of the longest essays. One of a few tokens tells nothing."""
        if self._meter and 2 * tokens >= self.tokens:
            found = tokens_within(self._meter.used(), tokens, self._meter.free())
            self._meter = None
            self._settle(found)

    def halve(self, lengths: np.ndarray, name: str, window: int | None = None) -> None:
        """Half the budget, or less where a single essay overshot it, after memory ran out; that is said.

        Args:
            lengths: tokens of each essay of the batch that failed.
            name: of what is predicted.
            window: tokens of an essay's longest window; none: it is one input.

        Raises:
            Fb3Error: it was one essay, or one window of it.
        """
        longest = int(lengths.max())
        at_once = min(self.tokens, longest * len(lengths))
        if len(lengths) == 1 and (window is None or at_once <= window):
            what = (
                f"one essay of {longest} tokens" if window is None else f"one window of {min(window, longest)} tokens"
            )
            raise Fb3Error(f"{name}: memory does not suffice for {what}")
        self._meter = None
        self._settle(max(1, at_once // 2))
        count = f"{len(lengths)} essays" if len(lengths) > 1 else "one essay"
        say(f"{name}: out of memory with {count} of {longest} tokens; now {self.tokens} tokens a batch")

    def _settle(self, tokens: int) -> None:
        self.tokens = tokens
        if self._key is not None:
            self._found[self._key] = Found(tokens, self._longest)


def tokens_within(used: int, tokens: int, free: int) -> int:
    """Tokens a batch that take a share of the memory that is free, within bounds.

    Args:
        used: bytes that a batch took.
        tokens: of that batch.
        free: bytes.
    """
    return max(_FIRST, min(int(_SHARE * free * tokens) // max(used, 1), _MOST))


def open_budget(
    scorer: Scorer, device: torch.device, precision: Precision, longest: int, given: int | None = None
) -> Budget:
    """The budget for a scorer on a device.

    Args:
        scorer: as it computes.
        device: where.
        precision: of the encoder.
        longest: tokens of the longest essay.
        given: the recipe's; none: by device, on CUDA by its memory.
    """
    if device.type != "cuda":
        return Budget(given or _TOKENS.get(device.type, _TOKENS_UNMEASURED))
    towers = scorer.towers().values()
    kinds = [(t.encoder.config.to_json_string(use_diff=False), t.encoder.dtype, t.reads) for t in towers]
    key = (str(device), precision, given, *kinds)
    return Budget(given or _FIRST, longest, None if given else CudaMeter(device), key)
