"""The folder for what was computed once and can be computed again; it may be deleted at any time."""

import os
import tempfile
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """A folder below FB3_CACHE, by default ~/.cache/fb3, or among the temporary files where that cannot be written."""
    named, user = os.environ.get("FB3_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    for place in (named, f"{user}/fb3") if named else (f"{user}/fb3",):
        folder = Path(place).expanduser() / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # RuntimeError: a user without a home directory
            continue
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"fb3-cache-{os.getuid() if hasattr(os, 'getuid') else 0}" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
