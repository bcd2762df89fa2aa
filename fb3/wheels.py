"""The wheels that training needs and the competition image lacks: so far iterative-stratification alone."""

import os
import subprocess
import sys
from pathlib import Path

from fb3.errors import Fb3Error

NEEDED = "iterative_stratification-*-py3-none-any.whl"


def find_wheels(folder: Path) -> list[Path]:
    """The wheels of a folder.

    Raises:
        Fb3Error: the one that training needs is not among them.
    """
    if not any(folder.glob(NEEDED)):
        raise Fb3Error(f"{folder}: no {NEEDED}; `pip download --no-deps iterative-stratification` fetches it")
    return sorted(folder.glob("*.whl"))


def fetch_wheels(lock: Path, folder: Path) -> list[Path]:
    """Downloads what the lock file pins, by hash, unless it is there already.

    Args:
        lock: requirements with `--hash`.
        folder: where the wheels are kept.

    Raises:
        Fb3Error: no network, or a hash that is not the lock's.
    """
    if not any(folder.glob(NEEDED)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--requirement", str(lock), "--dest", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_NO_INPUT": "1"})
        if done.returncode:
            why = [line for line in done.stderr.splitlines() if "ERROR" in line][:2]
            raise Fb3Error(
                f"{lock}: pip could not fetch the wheels ({' '.join(why)}); give a folder that has them with --wheels, "
                "or go without with --no-wheels: inference does not need them"
            )
    return find_wheels(folder)
