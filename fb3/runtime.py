"""Where am I: input folders, the device that works, its precision, seeds. The only place that knows Kaggle's paths."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fb3.errors import Fb3Error

if TYPE_CHECKING:
    import torch

KAGGLE_INPUT = Path("/kaggle/input")
BUNDLE_MARKER = "manifest.json"
COMPETITION_MARKER = "sample_submission.csv"
_MOUNT_DEPTH = 7  # /kaggle/input/models/<owner>/<slug>/<framework>/<variation>/<version>/ is the deepest mount known

Precision = Literal["fp32", "fp16", "bf16"]


def on_kaggle() -> bool:
    """Told by Kaggle's own variables: its image carries google.colab too."""
    return any(name.startswith("KAGGLE_") and name != "KAGGLE_CONFIG_DIR" for name in os.environ)


def input_root() -> Path:
    """The folder under which inputs are mounted: FB3_INPUT, else Kaggle's.

    Raises:
        Fb3Error: neither is there.
    """
    root = Path(os.environ.get("FB3_INPUT") or KAGGLE_INPUT)
    if not root.is_dir():
        raise Fb3Error(f"{root}: no such folder; give --data DIR, or set FB3_INPUT to the folder that holds the inputs")
    return root


def find_bundle(root: str | Path | None = None) -> Path:
    """The one folder under `root` (default: `input_root()`) with a manifest.json and fb3's source beside it."""
    found = [path for path in _folders_with(BUNDLE_MARKER, root) if (path / "fb3").is_dir()]
    return _only(found, "bundle", BUNDLE_MARKER, root, "the bundle's folder, the first argument")


def find_competition(root: str | Path | None = None) -> Path:
    """The one folder under `root` (default: `input_root()`) with a sample_submission.csv."""
    found = _folders_with(COMPETITION_MARKER, root)
    return _only(found, "competition's data", COMPETITION_MARKER, root, "--data")


def _folders_with(marker: str, root: str | Path | None) -> list[Path]:
    def walk(folder: Path, depth: int) -> Iterator[Path]:
        if (folder / marker).is_file():
            yield folder
            return
        if depth:
            for child in sorted(folder.iterdir()):
                if child.is_dir() and not child.is_symlink():
                    yield from walk(child, depth - 1)

    return list(walk(Path(root) if root else input_root(), _MOUNT_DEPTH))


def _only(found: list[Path], what: str, marker: str, root: str | Path | None, argument: str) -> Path:
    place = root or input_root()
    if not found:
        raise Fb3Error(f"{place}: no {what} below it (no {marker}); attach it or give {argument}")
    if len(found) > 1:
        raise Fb3Error(f"{place}: more than one {what}: {[str(path) for path in found]}; decide with {argument}")
    return found[0]


def pick_device(name: str | None = None) -> "torch.device":
    """The device that really works: CUDA or MPS only when a first operation on it succeeds, else the CPU.

    A GPU for which torch has no kernels still reports itself as available (a P100 under a recent torch).

    Args:
        name: FB3_DEVICE's or the caller's wish; a wish that fails is an error, never a silent CPU.
    """
    import torch

    from fb3.progress import say

    wish = name or os.environ.get("FB3_DEVICE")
    candidates = [wish] if wish else [d for d, there in _accelerators().items() if there]
    for candidate in candidates:
        try:
            probe = torch.ones(8, 8, device=candidate)
            if float((probe @ probe).sum()) == 512.0:
                return torch.device(candidate)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            if wish:
                raise Fb3Error(f"device {wish}: does not work here ({reason}); leave FB3_DEVICE out") from None
            say(f"{candidate} is there but does not work ({reason}); using the CPU")
    return torch.device("cpu")


def _accelerators() -> dict[str, bool]:
    import torch

    rank = os.environ.get("LOCAL_RANK")  # set where several processes were launched, each with its own GPU
    return {f"cuda:{rank}" if rank else "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def pick_precision(wish: str, device: "torch.device", key: str = "train.precision") -> Precision:
    """`auto` made definite: bf16 where the chip has it in hardware, fp16 on older GPUs, else fp32.

    Args:
        wish: fp32, fp16, bf16 or auto.
        device: where it is to run.
        key: of the recipe, named in the error.

    Raises:
        Fb3Error: fp16 on a CPU, where it is hundreds of times slower than fp32.
    """
    import torch

    if wish != "auto":
        if wish == "fp16" and device.type == "cpu":
            raise Fb3Error(f"{key}=fp16: not on a CPU; use auto, bf16 or fp32")
        return wish
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """torch emulates bf16 on any AVX-512 chip, slower than fp32; only the chip's own flags tell."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch on every device."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def secret(name: str) -> str | None:
    """A secret from the environment, else from Kaggle's store; None where there is none."""
    if value := os.environ.get(name):
        return value
    if not on_kaggle():
        return None
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret(name)
    except Exception:  # the store raises errors of its own kinds when a secret is not attached or the network is off
        return None
