"""Where am I: input folders, the device that works, its precision, seeds. The only place that knows Kaggle's paths."""

import ctypes
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fb3.errors import Fb3Error

if TYPE_CHECKING:
    import torch

KAGGLE_INPUT = Path("/kaggle/input")
# For a rehearsal: where Kaggle mounts bundle and competition, and what it sets, in the run on the public files when a
# notebook is saved and in the later one on the hidden rows.
MOUNTS = {
    "new": ("datasets/someone/bundle", "competitions/competition"),
    "old": ("bundle", "competition"),
}
COMMIT_VARIABLES = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": "https://www.kaggle.com"}
RERUN_VARIABLES = {**COMMIT_VARIABLES, "KAGGLE_IS_COMPETITION_RERUN": "1"}
SECRET_VARIABLES = ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_API_V1_TOKEN")
NO_CREDENTIALS = (
    "Kaggle's client found no credentials: make a token at kaggle.com/settings and put it into ~/.kaggle/access_token "
    "or KAGGLE_API_TOKEN"
)
BUNDLE_MARKER = "manifest.json"
COMPETITION_MARKER = "sample_submission.csv"
TEST = "test.csv"
_IMPORTED = time.monotonic()
_KERNELS = (b"ipykernel", b"papermill", b"nbconvert", b"nbclient")
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS found no room for its workspace
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_MOUNT_DEPTH = 7  # /kaggle/input/models/<owner>/<slug>/<framework>/<variation>/<version>/ is the deepest mount known

Precision = Literal["fp32", "fp16", "bf16"]
Broken = Literal["cpu", "stop"]


def on_kaggle() -> bool:
    """Told by the variables of its notebooks: the client's stand on laptops too, and the image has google.colab."""
    return any(name in os.environ for name in RERUN_VARIABLES)


def hidden_rerun() -> bool:
    """Whether this is Kaggle's own run on the hidden rows, where an error costs the submission."""
    return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


def session_seconds() -> float:
    """What a session that Kaggle runs as a whole has taken already; 0 elsewhere, and where somebody sits before it.

    It begins with the notebook's kernel: this process, or one above it where a cell started this one.
    """
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") != "Batch" and not hidden_rerun():
        return 0.0
    try:
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        process, age = os.getpid(), 0.0
        while process > 1:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if process == os.getpid() or any(name in command for name in _KERNELS):
                age = max(age, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
            process = int(fields[1])
        return age
    except (OSError, ValueError, IndexError):  # no Linux
        return time.monotonic() - _IMPORTED


def parse_duration(text: str) -> float:
    """Seconds of a text such as 8h30m, 90m, 45s or 3600.

    Raises:
        Fb3Error: something else, or nothing.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not found or not any(found.groups()):
        raise Fb3Error(f"{text!r} is no duration; write 8h30m, 90m or 45s")
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))


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
    """The one folder under `root` (default: `input_root()`) with a manifest.json, fb3's source and runs beside it."""
    found = [path for path in folders_with(BUNDLE_MARKER, root) if (path / "fb3").is_dir()]
    trained = [path for path in found if (path / "runs").is_dir()]
    if found and not trained:
        raise Fb3Error(
            f"{root or input_root()}: no bundle with a trained run below it, only fb3's source in "
            f"{[str(path) for path in found]}; attach the training notebook's output, or what `python build_dataset.py "
            "RUN` packed"
        )
    return _only(trained, "bundle", BUNDLE_MARKER, root, "the bundle's folder, the first argument")


def find_competition(root: str | Path | None = None) -> Path:
    """The one folder under `root` (default: `input_root()`) with a sample_submission.csv."""
    found = folders_with(COMPETITION_MARKER, root)
    return _only(found, "competition's data", COMPETITION_MARKER, root, "--data")


def folders_with(marker: str, root: str | Path | None = None) -> list[Path]:
    """The folders under `root` (default: `input_root()`) that hold a file of this name; below one, none is sought.

    Raises:
        Fb3Error: `root` is not there.
    """
    seen: set[Path] = set()

    def walk(folder: Path, depth: int) -> Iterator[Path]:
        real = folder.resolve()
        if real in seen:  # one mount may be a link to another
            return
        seen.add(real)
        if (folder / marker).is_file():
            yield folder
        elif depth:
            for child in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
                if child.is_dir():
                    yield from walk(child, depth - 1)

    if root and not os.path.isdir(root):  # noqa: PTH112 - Path's raises for impossible names
        raise Fb3Error(f"{root}: no such folder")
    return list(walk(Path(root) if root else input_root(), _MOUNT_DEPTH))


def _only(found: list[Path], what: str, marker: str, root: str | Path | None, argument: str) -> Path:
    place = root or input_root()
    if not found:
        raise Fb3Error(f"{place}: no {what} below it (no {marker}); attach it or give {argument}")
    if len(found) > 1:
        raise Fb3Error(f"{place}: more than one {what}: {[str(path) for path in found]}; decide with {argument}")
    return found[0]


def pick_device(name: str | None = None, broken: Broken = "cpu") -> "torch.device":
    """The device that really works: CUDA or MPS only when a first operation on it succeeds, else the CPU.

    A GPU for which torch has no kernels still reports itself as available (a P100 under a recent torch).

    Args:
        name: FB3_DEVICE's or the caller's wish; a wish that fails is an error, never a silent CPU.
        broken: what to do about a device that is there but fails: "cpu" falls back and says so, "stop" refuses.
    """
    return pick_devices(name, broken)[0]


def pick_devices(name: str | None = None, broken: Broken = "cpu") -> "list[torch.device]":
    """All GPUs that really work, or one other device; FB3_DEVICE may name several, such as cuda:0,cuda:1.

    Args:
        name, broken: as in `pick_device`.

    Raises:
        Fb3Error: a wish that fails, or with broken="stop" any GPU that fails.
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
    """None where a first operation on the device gives the right result."""
    import torch

    try:
        probe = torch.ones(8, 8, device=device)
        return None if float((probe @ probe).sum()) == 512.0 else "it computes wrongly"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).splitlines()[0]


def is_main_process() -> bool:
    """Whether this is the first of a launcher's processes, by the variables that accelerate reads too."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")  # set where several processes were launched, each with its own GPU
        return [f"cuda:{rank}"] if rank else [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []


def pick_precision(wish: str, device: "torch.device", key: str = "train.precision") -> Precision:
    """`auto` made definite: bf16 where the chip has it in hardware, fp16 on older GPUs, else fp32.

    Args:
        wish: fp32, fp16, bf16 or auto.
        device: where it is to run.
        key: of the recipe, named in the error.

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
    """Whether it is a GPU older than sm_80, such as a T4: torch computes bf16 there too, several times slower."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8


def _cpu_has_bf16() -> bool:
    """torch emulates bf16 on any AVX-512 chip, slower than fp32; only the chip's own flags tell."""
    return _cpu_has("avx512_bf16", "amx_bf16")


def cpu_has_int8() -> bool:
    """Whether the chip multiplies int8 numbers faster than others."""
    return _cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


def _cpu_has(*wanted: str) -> bool:
    """One of some flags, as the system names them."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in wanted)


def out_of_memory(error: Exception) -> bool:
    """By torch's own type, or by the words of the CPU's allocator, of CUDA and of its libraries."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def keep_freed_memory() -> None:
    """Lets this process keep what tensors on a CPU free, for the next ones: of glibc, elsewhere nothing happens.

    By default it goes back to the system as soon as it is free, tens of megabytes after each layer, and the next
    tensors' pages are filled with zeros again at their first touch: GELU on 3,328 tokens of 1,536 takes three to four
    times as long that way.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch on every device."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: "torch.device") -> dict[str, Any]:
    """Where the generators stand that `seed_everything` seeds, as numbers and tensors."""
    import numpy
    import torch

    version, words, gauss = random.getstate()
    kind, keys, *rest = numpy.random.get_state()
    own = {"cuda": lambda: torch.cuda.get_rng_state(device), "mps": torch.mps.get_rng_state}.get(device.type)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "device": own() if own else None,
    }


def restore_random_state(state: dict[str, Any], device: "torch.device") -> None:
    """Puts the generators where `random_state` found them; a device of another kind keeps its own."""
    import numpy
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    elif state["device"] is not None and device.type == "mps":
        torch.mps.set_rng_state(state["device"])


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
