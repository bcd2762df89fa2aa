"""Runs a notebook as on the competition's machine: no network, read-only inputs, only its packages."""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fb3.bundles.images import Image, installed_closure
from fb3.system.files import read_json, write_json

_REPOSITORY = Path(__file__).parents[2]
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FB3_DEVICE")


def namespace_command() -> list[str] | None:
    """The command prefix that gives a process its own network and mounts; None where the system forbids it."""
    program = "import sys; from fb3.rehearsal.inside_sandbox import bind_read_only; bind_read_only(*sys.argv[1:])"
    for prefix in (["unshare", "-rmn"], ["unshare", "-mn"]):
        try:
            with tempfile.TemporaryDirectory() as folder:
                command = [*prefix, sys.executable, "-c", program, folder, folder]
                if not subprocess.run(command, capture_output=True, cwd=_REPOSITORY).returncode:
                    return prefix
        except OSError:
            continue
    return None


def run_in_sandbox(
    notebook: Path,
    inputs: Mapping[str, Path],
    bundle: str,
    folder: Path,
    modules: list[str],
    prefix: list[str] | None,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """Runs a notebook in namespaces of its own; without them, sockets are blocked inside its process only.

    Args:
        notebook: the .ipynb.
        inputs: folders by their places below the input folder.
        bundle: the place from which everything may be imported.
        folder: takes the working folder, the settings and the result.
        modules: other top-level modules that may be imported, as `importable` gives them.
        prefix: the command of `namespace_command`.
        variables: environment variables of the notebook.

    Returns:
        error (None where the notebook ran through), seconds, refused (modules whose import was refused).
    """
    root, working, guard, home = (folder.resolve() / name for name in ("input", "working", "guard", "home"))
    for each in (working, guard, home):
        each.mkdir(parents=True)
    for place, source in inputs.items():
        if prefix:
            (root / place).mkdir(parents=True)
        else:
            shutil.copytree(source, root / place)
    log, result = guard / "refused.txt", folder.resolve() / "result.json"
    shutil.copyfile(Path(__file__).with_name("import_guard.py"), guard / "sitecustomize.py")
    settings = {"modules": modules, "bundle": str(root / bundle), "log": str(log), "sockets": prefix is None}
    write_json(settings, guard / "settings.json")
    spec = {
        "notebook": str(notebook),
        "working": str(working),
        "env": {
            "PYTHONPATH": str(guard),
            "FB3_GUARD": str(guard / "settings.json"),
            "FB3_INPUT": str(root),
            "HOME": str(home),
            **variables,
        },
        "keep": list(_KEPT),
        "mounts": [[str(source.resolve()), str(root / place)] for place, source in inputs.items()] if prefix else [],
        "result": str(result),
    }
    write_json(spec, file := folder.resolve() / "spec.json")
    command = [*(prefix or []), sys.executable, "-m", "fb3.rehearsal.inside_sandbox", str(file)]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        return {"error": f"the sandbox itself failed: {done.stderr.strip()[-1500:]}", "seconds": 0.0, "refused": []}
    refused = sorted(set(log.read_text(encoding="utf-8").split())) if log.is_file() else []
    return {**read_json(result), "refused": refused}


def importable(image: Image) -> list[str]:
    """Top-level modules of the packages that the image and a notebook kernel have, as far as they are installed here.

    The requirements of these packages count too, because this machine's versions may need others than the image's.
    """
    allowed = set(installed_closure(map(Requirement, [*image.packages, "ipykernel", "nbclient", "pip", "setuptools"])))
    modules = importlib.metadata.packages_distributions()
    return sorted(m for m, owners in modules.items() if any(canonicalize_name(owner) in allowed for owner in owners))
