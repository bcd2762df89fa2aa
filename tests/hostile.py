"""Damage to valid files, for hypothesis: bytes cut, flipped and repeated; values of a tree replaced by odd ones."""

import copy
import datetime
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fb3.errors import Fb3Error

# FB3_FUZZ_EXAMPLES: cases of each test; without it few, and always the same ones.
EXAMPLES = int(os.environ.get("FB3_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 20,
    derandomize=not EXAMPLES,
    database=None,
    deadline=datetime.timedelta(seconds=20),  # nothing may hang
    suppress_health_check=list(HealthCheck),
)

NESTED: list = []
for _ in range(300):
    NESTED = [NESTED]
ODD = [
    *(None, True, False, 0, -1, 1, 7, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "1", "nan", "../x", "/etc/passwd", "a/../../b", "a\\b", "\0", "\ud800", "٣", "²", "{x", "$tensor"),
    *("9" * 5000, "x" * 10_000, [], {}, [[]], [1], ["x", None], {"": 1}, {"kind": "x"}, {"$tensor": "x"}),
    *({"$float": "x"}, {"size": 1, "sha256": 1}, list(range(200)), NESTED),
]
_PIECES = [b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"'", b",", b"\n", b"\r", b"{", b"[", b"&a ", b"*a", b"!!int ", b"- "]
_PIECES += [b"<<: ", b"NaN", b"1e999", b"9" * 5000, b"\\ud800", b"[" * 3000, b"(" * 3000, b"--hash=", b"=", b"\xc2\x85"]


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Some bytes of a file cut off, dropped, flipped, put in or repeated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 40)))
        how = draw(st.sampled_from(["cut", "drop", "flip", "insert", "repeat"]))
        if how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at:end]
        elif how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            data[at:at] = draw(st.one_of(st.sampled_from(_PIECES), st.binary(max_size=20)))
        elif how == "repeat":
            data[at:at] = data[at:end] * draw(st.integers(1, 50))
    return bytes(data)


@st.composite
def swapped(draw, tree):
    """A tree of dicts and lists with some values replaced, dropped, doubled, or put under another key."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        node, key = _place(draw, tree)
        if node is None:
            return draw(st.sampled_from(ODD))
        how = draw(st.sampled_from(["replace", "replace", "drop", "move"]))
        if how == "replace":
            node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif how == "drop":
            del node[key]
        elif isinstance(node, dict):
            node[draw(st.sampled_from(["", "x", "../x", "\0", "kind", str(key) + "s"]))] = node.pop(key)
        else:
            node.append(node[key])
    return tree


def _place(draw, tree):
    node, key, inner = None, None, tree
    while isinstance(inner, dict | list) and inner and (node is None or draw(st.integers(0, 3))):
        node = inner
        key = (
            draw(st.sampled_from(sorted(inner, key=str)))
            if isinstance(inner, dict)
            else draw(st.integers(0, len(inner) - 1))
        )
        inner = node[key]
    return node, key


def told(read, path, *names):
    """What `read` gives for a file; or our own message, of bounded length, which names the file. Nothing else."""
    try:
        return read(path)
    except Fb3Error as refused:
        error = refused
    assert any(name in str(error) for name in (path.name, *names)), error
    assert len(str(error)) < 5000
    return error
