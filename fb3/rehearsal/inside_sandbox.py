"""The process inside a rehearsal's sandbox: mounts the inputs read-only and executes the notebook.

    python -m fb3.rehearsal.inside_sandbox SPEC.json

It is started with its own network and mounts. SPEC holds notebook, working (folder), env (the kernel's variables), keep
(names of variables that it inherits), mounts ([source, place], …; empty without namespaces), result (the JSON file to
write: error or null, seconds).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.rehearsal.notebooks import run_notebook
from fb3.system.files import read_json, write_json

_LIMIT = 9 * 3600  # seconds, the competition's limit


def main(spec_file: str) -> None:
    """Mounts the inputs, runs the notebook, writes the result."""
    spec = read_json(Path(spec_file))
    for source, place in spec["mounts"]:
        bind_read_only(source, place)
    for name in [name for name in os.environ if name not in spec["keep"]]:
        del os.environ[name]
    start = time.monotonic()
    error = None
    try:
        run_notebook(Path(spec["notebook"]), Path(spec["working"]), spec["env"], timeout=_LIMIT)
    except (Fb3Error, RuntimeError) as failed:  # nbclient raises RuntimeError where the kernel dies at its start
        error = str(failed)
    write_json({"error": error, "seconds": round(time.monotonic() - start, 1)}, spec["result"])


def bind_read_only(source: str, place: str) -> None:
    """Shows a folder at another place, read-only."""
    subprocess.run(["mount", "--bind", source, place], check=True, capture_output=True)
    for flags in ("remount,bind,ro", "remount,bind,ro,nosuid,nodev"):  # a namespace may not drop flags of the source
        if not subprocess.run(["mount", "-o", flags, place], capture_output=True).returncode:
            return
    raise Fb3Error(f"{place}: cannot be made read-only here")


if __name__ == "__main__":
    main(sys.argv[1])
