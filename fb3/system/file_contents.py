"""Files recognised by their first bytes, so that a wrong one is named before a library fails on it."""

import json
import re
import zipfile
from pathlib import Path

from fb3.system.files import format_bytes

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|error)\b", re.IGNORECASE)
_ZIP, _PICKLE = b"PK\3\4", b"\x80"
_KINDS = {_ZIP: "a zip archive", b"\x1f\x8b": "a gzip archive", b"\x89HDF": "an HDF5 file", b"GGUF": "a GGUF file"}
_LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_AGAIN = "copy or download it again"


def placeholder_problem(path: Path) -> str:
    """The end of a sentence that says why a file is empty, a Git LFS pointer or a web page, with the mend; else empty.

    Raises:
        OSError: it cannot be read.
    """
    start = _start(path)
    if not start:
        return f"is empty; {_AGAIN}"
    if start.startswith(_POINTER):
        size = re.search(rb"\nsize (\d{1,15})\b", start)
        whole = f" of {format_bytes(int(size[1]))}" if size else ""
        return f"is a Git LFS pointer, not the file{whole} that it stands for; run `git lfs pull` in its repository"
    if _PAGE.match(start):
        return f"is a web page, not the file behind it; {_AGAIN}"
    return ""


def weights_problem(path: Path) -> str:
    """The end of a sentence that says why a file cannot hold the weights of its suffix, with the mend; else empty.

    Only the header is read.

    Raises:
        OSError: it cannot be read.
    """
    if problem := placeholder_problem(path):
        return problem
    start = _start(path)
    tensors, pickled = _is_safetensors(start), start.startswith((_ZIP, _PICKLE))
    if path.suffix == ".safetensors":
        if tensors:
            return _size_problem(path)
        if pickled:
            return "is a PyTorch file, not safetensors; rename it to pytorch_model.bin"
        return f"is {_describe(start)}, not safetensors; {_AGAIN}"
    if tensors:
        return "is a safetensors file, not PyTorch's; rename it to model.safetensors"
    if start.startswith(_ZIP) and not zipfile.is_zipfile(path):
        return f"is cut off: a zip archive without its end; {_AGAIN}"
    return "" if pickled else f"is {_describe(start)}, not PyTorch's weights; {_AGAIN}"


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER


def _size_problem(path: Path) -> str:
    """Compares a safetensors file's size with its header's; a broken header is left to the library's own error."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        text = file.read(header)
    if len(text) < header:
        return f"is cut off within its header; {_AGAIN}"
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(text).items() if name != "__metadata__"]
        whole = 8 + header + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return ""
    return "" if whole == size else f"has {size:,} bytes where its header asks for {whole:,}; {_AGAIN}"


def _describe(start: bytes) -> str:
    for mark, kind in _KINDS.items():
        if start.startswith(mark):
            return kind
    text = start.decode("utf-8", "ignore")
    if text and all(character.isprintable() or character.isspace() for character in text):
        return f"a text ({' '.join(text.split())[:40]!r})"
    return "of another kind"
