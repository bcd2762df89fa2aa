"""Finds fb3's notebooks and executes them in a real kernel, from the first cell to the last."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fb3.errors import Fb3Error
from fb3.system.files import read_utf8

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def find_notebook(name: str) -> Path:
    """A notebook of the repository; an Fb3Error where fb3 was installed without it."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.is_file():
        raise Fb3Error(f"{path}: not there; install fb3 from a clone with `pip install -e .`")
    return path


def run_notebook(notebook: Path, cwd: Path, env: Mapping[str, str], timeout: int = 1800) -> Path:
    """Executes a notebook with this interpreter's kernel, without tcp, so that it works where the network is cut.

    Args:
        notebook: the .ipynb.
        cwd: the kernel's working folder, which takes the executed copy.
        env: environment variables beside this process's.
        timeout: most seconds for a cell.

    Returns:
        The executed copy.

    Raises:
        Fb3Error: a cell failed; the message holds the end of its traceback.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    cwd.mkdir(parents=True, exist_ok=True)
    cwd = cwd.resolve()
    try:
        content = nbformat.reads(read_utf8(notebook), as_version=4)
    except Fb3Error:
        raise
    except Exception as error:  # not JSON, or of another form
        raise Fb3Error(f"{notebook}: no notebook ({error})") from None
    executed = cwd / notebook.name
    # The runtime folder's path is short because a unix socket's may have at most 107 characters. Without folders of
    # kernel specs, "python3" is this very interpreter.
    with tempfile.TemporaryDirectory(prefix="fb3-") as runtime:
        manager = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            connection_file=str(Path(runtime) / "k.json"),
        )
        client = NotebookClient(content, km=manager, timeout=timeout, kernel_name="python3")
        try:
            client.execute(cwd=str(cwd), env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env})
        except CellExecutionError as error:
            raise Fb3Error(f"{notebook.name}: a cell failed: {_tail(error)}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise Fb3Error(f"{notebook.name}: {error}") from None
        finally:
            nbformat.write(content, executed)
    return executed


def _tail(error: Exception, lines: int = 12) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return "\n".join(text.strip().splitlines()[-lines:])
