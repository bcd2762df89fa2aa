"""Kaggle's folders, variables, sessions and secrets; no other module names them."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.system.compressed_files import COMPRESSED

KAGGLE_INPUT = Path("/kaggle/input")
# Folders below /kaggle/input where Kaggle mounts bundle and competition, for a rehearsal.
MOUNTS = {
    "new": ("datasets/someone/bundle", "competitions/competition"),
    "old": ("bundle", "competition"),
}
# Variables that Kaggle sets when a saved notebook runs on the public files, and when it runs again on the hidden rows.
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
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_MOUNT_DEPTH = 7  # /kaggle/input/models/<owner>/<slug>/<framework>/<variation>/<version>/ is the deepest mount known


def on_kaggle() -> bool:
    """Whether this is a Kaggle notebook.

    Only the notebooks' variables tell: the client's are set on laptops too, and Kaggle's image has google.colab.
    """
    return any(name in os.environ for name in RERUN_VARIABLES)


def hidden_rerun() -> bool:
    """Whether this is Kaggle's own run on the hidden rows, where an error costs the submission."""
    return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


def session_seconds() -> float:
    """Seconds that a batch session of Kaggle has run already; 0 in an interactive session and elsewhere.

    A session begins with the notebook's kernel: this process, or its ancestor where a cell started it.
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
    """The seconds in a text such as 8h30m, 90m, 45s or 3600; an Fb3Error where it is empty or of another form."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not found or not any(found.groups()):
        raise Fb3Error(f"{text!r} is no duration; write 8h30m, 90m or 45s")
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))


def input_root() -> Path:
    """The folder under which inputs are mounted: FB3_INPUT, else Kaggle's; an Fb3Error where it does not exist."""
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
    return _single_folder(trained, "bundle", BUNDLE_MARKER, root, "the bundle's folder, the first argument")


def find_competition(root: str | Path | None = None, names: Sequence[str] = (COMPETITION_MARKER, TEST)) -> Path:
    """The one folder under `root` (default: `input_root()`) with the first of some files that is found, or its
    compressed form.

    Args:
        root: the folder to look in.
        names: a recipe's `data.files.markers()`; by default the usual sample_submission.csv, else test.csv.
    """
    searches = (folders_with(name + suffix, root) for name in names for suffix in ("", *COMPRESSED))
    found = next(filter(None, searches), [])
    return _single_folder(found, "competition's data", " and no ".join(names), root, "--data")


def folders_with(marker: str, root: str | Path | None = None) -> list[Path]:
    """The folders under `root` (default: `input_root()`) that hold a file of this name; their subfolders are skipped.

    Raises:
        Fb3Error: `root` does not exist.
    """
    seen: set[Path] = set()

    def walk(folder: Path, depth: int) -> Iterator[Path]:
        real = folder.resolve()
        if real in seen:  # a mount may be a link to another
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


def _single_folder(found: list[Path], what: str, marker: str, root: str | Path | None, argument: str) -> Path:
    """The only folder found; an error for none or several."""
    place = root or input_root()
    if not found:
        raise Fb3Error(f"{place}: no {what} below it (no {marker}); attach it or give {argument}")
    if len(found) > 1:
        raise Fb3Error(f"{place}: more than one {what}: {[str(path) for path in found]}; decide with {argument}")
    return found[0]


def is_main_process() -> bool:
    """Whether this is the launcher's first process, by the variables that accelerate reads too."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def secret(name: str) -> str | None:
    """A secret from the environment, else from Kaggle's store; None where there is none."""
    if value := os.environ.get(name):
        return value
    if not on_kaggle():
        return None
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret(name)
    except Exception:  # the store has its own errors for a secret that is not attached and for a missing network
        return None
