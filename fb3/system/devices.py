"""Devices that work, the precision they compute in fast, and errors about their memory."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from fb3.errors import Fb3Error

if TYPE_CHECKING:
    import torch


_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS could not allocate its workspace
)
Precision = Literal["fp32", "fp16", "bf16"]
Broken = Literal["cpu", "stop"]
T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers in glibc's malloc.h


def pick_device(name: str | None = None, broken: Broken = "cpu") -> "torch.device":
    """The device to use: CUDA or MPS where a first operation on it succeeds, else the CPU.

    A GPU for which torch has no kernels still reports itself as available (a P100 under a recent torch).

    Args:
        name: the device to use, default FB3_DEVICE; one that does not work is an error, never replaced by the CPU.
        broken: for a device that was found but does not work: "cpu" falls back and says so, "stop" raises.

    Raises:
        Fb3Error: see `pick_devices`.
    """
    return pick_devices(name, broken)[0]


def pick_devices(name: str | None = None, broken: Broken = "cpu") -> "list[torch.device]":
    """All GPUs that work, or one other device; FB3_DEVICE may name several, such as cuda:0,cuda:1.

    Args:
        name, broken: see `pick_device`.

    Raises:
        Fb3Error: a device that was asked for does not work, or with broken="stop" any GPU does not.
    """
    import torch

    from fb3.system.progress import say

    wish = name or os.environ.get("FB3_DEVICE")
    working = []
    for candidate in wish.split(",") if wish else _accelerators():
        if reason := _why_broken(candidate):
            if wish:
                raise Fb3Error(f"device {candidate}: does not work here ({reason}); leave FB3_DEVICE out")
            if broken == "stop":
                raise Fb3Error(
                    f"{candidate} is there but does not work ({reason}); on Kaggle choose T4 as the accelerator, or "
                    "let the recipe take the CPU with train.broken_gpu=cpu predict.broken_gpu=cpu"
                )
            say(f"{candidate} is there but does not work ({reason}); on Kaggle choose T4 as the accelerator")
        else:
            working.append(torch.device(candidate))
    return working or [torch.device("cpu")]


def _why_broken(device: str) -> str | None:
    """The reason why a first operation on the device fails; None where its result is right."""
    import torch

    try:
        probe = torch.ones(8, 8, device=device)
        return None if float((probe @ probe).sum()) == 512.0 else "it computes wrongly"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).splitlines()[0]


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")  # set where several processes were launched, each with its own GPU
        return [f"cuda:{rank}"] if rank else [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []


def pick_precision(wish: str, device: "torch.device", key: str = "train.precision") -> Precision:
    """The precision for a device; `auto` becomes bf16 where the chip has it in hardware, fp16 on older GPUs, else fp32.

    Args:
        wish: fp32, fp16, bf16 or auto.
        device: the device that will compute.
        key: the recipe's key, for the error.

    Raises:
        Fb3Error: fp16 on a CPU, where it is hundreds of times slower than fp32; bf16 on a GPU that has to emulate it.
    """
    if wish != "auto":
        if wish == "fp16" and device.type == "cpu":
            raise Fb3Error(f"{key}=fp16: not on a CPU; use auto, bf16 or fp32")
        if wish == "bf16" and emulates_bf16(device):
            raise Fb3Error(f"{key}=bf16: this GPU has no bf16, and emulates it slowly; use auto or fp16")
        return wish
    if device.type == "cuda":
        return "fp16" if emulates_bf16(device) else "bf16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def emulates_bf16(device: "torch.device") -> bool:
    """Whether a device is a GPU older than sm_80, such as a T4, on which torch computes bf16 several times slower."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8


def _cpu_has_bf16() -> bool:
    """Whether the chip has bf16 instructions; on other AVX-512 chips torch emulates bf16, slower than fp32."""
    return _cpu_has("avx512_bf16", "amx_bf16")


def cpu_has_int8() -> bool:
    """Whether the chip has fast int8 instructions."""
    return _cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


def _cpu_has(*wanted: str) -> bool:
    """Whether the chip has any of these flags, named as in /proc/cpuinfo."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in wanted)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch's own error type, or a message of the CPU's allocator, CUDA or its libraries."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def within_memory(attempt: Callable[[], T], device: "torch.device") -> T | None:
    """The result of an attempt; none if memory ran out, after freeing the memory that it held."""
    import torch

    try:
        return attempt()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def keep_freed_memory() -> None:
    """Tells glibc's allocator to keep the memory of freed CPU tensors for the next ones; without glibc nothing happens.

    By default tens of megabytes return to the system after each layer, and the system fills the next tensors' pages
    with zeros at their first touch: GELU on 3,328 tokens of 1,536 takes three to four times as long that way.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that glibc accepts
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
