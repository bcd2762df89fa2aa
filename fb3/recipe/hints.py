"""Sentences about a wrong key or value of a recipe, with the likeliest key."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from fb3.errors import likeliest, nearest
from fb3.recipe.keys import dotted, dotted_keys, kinds_with, known_keys
from fb3.recipe.settings import Settings
from fb3.recipe.training import FORMER_DEFAULTS

_APART = "pretrain"  # a group whose keys repeat other groups' names; those it suggests to its own alone
_LIKE = 0.75  # similarity above which a key is suggested: metric and tricks have 0.67, epoch and epochs 0.91


def explain(model: type[Settings], error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words: the key, what is wrong, and the value or the likeliest known key."""
    path, value = error["loc"], error["input"]
    key = dotted(model, path) or "recipe"
    if error["type"] == "extra_forbidden":
        return _unknown(model, path, key)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in {"model_type", "model_attributes_type"}:  # an item of a list begins with its kind
        keys = known_keys(model, path) or ["kind"]
        message = f"holds keys of its own ({', '.join(keys)}), such as {{{keys[0]}: …}}"
    elif error["type"] == "tuple_type":
        message = "want a list in brackets"
    elif error["type"] == "missing":
        message = "missing, and it has no default; give it"
    elif error["type"] == "union_tag_invalid":
        return f"{key}.kind: want one of {error['ctx']['expected_tags']}, got {error['ctx']['tag']!r}"
    elif error["type"] == "union_tag_not_found":
        message = "a kind is missing, such as {kind: …}"
    return f"{key}: {message}" + ("" if isinstance(value, (dict, list, Settings)) else f", got {value!r}")


def is_rule(model: type[Settings], error: Mapping[str, Any]) -> bool:
    """Whether one of pydantic's errors may vanish once other settings change.

    A rule's error may; where kinds share most settings, so may one about a setting that is missing or of another kind.
    """
    by_kind = error["type"] == "missing" or (error["type"] == "extra_forbidden" and kinds_with(model, error["loc"]))
    return error["type"] == "value_error" or bool(by_kind and error["loc"][0] in FORMER_DEFAULTS)


def _unknown(model: type[Settings], path: Sequence[str | int], key: str) -> str:
    if kinds := kinds_with(model, path):
        one = f"kind {kinds[0]}; leave it out or take kind: {kinds[0]}"
        several = f"kinds {', '.join(kinds)}; leave it out or take one of them"
        return f"{key}: belongs to {several if kinds[1:] else one}"
    beside, in_list = known_keys(model, path[:-1]), any(isinstance(part, int) for part in path)
    return f"unknown key {key}; " + (
        nearest(str(path[-1]), beside) if in_list else key_hint(key, dotted_keys(model), beside)
    )


def key_hint(key: str, known: Sequence[str], beside: Sequence[str]) -> str:
    """The end of a sentence about an unknown key.

    Args:
        key: the unknown key, dotted.
        known: dotted keys. Keys with the same last part are suggested first, then similar ones.
        beside: the keys that may stand in its place, listed where none is similar.
    """
    above, _, last = key.rpartition(".")
    others = [other for other in known if other != key and not key.startswith(f"{other}.")]
    if not _mistyped(key.partition(".")[0], _APART):
        plain = {_last(other) for other in others if not other.startswith(f"{_APART}.")}
        others = [other for other in others if not (other.startswith(f"{_APART}.") and _last(other) in plain)]
    likely = [other for other in others if _last(other) == last]
    near = [other for other in others if _near(last, _last(other))]
    alike = get_close_matches(key, near, n=1, cutoff=_LIKE)
    if above and alike and alike[0].count(".") == key.count("."):
        likely = alike
    deeper = [other for other in likely if {*key.split(".")} <= {*other.split(".")}]
    beneath = [other for other in near if above in {"", other.rpartition(".")[0]}]
    likely = sorted(deeper or likely or alike or beneath, key=lambda other: -SequenceMatcher(None, key, other).ratio())
    return f"did you mean {' or '.join(map(repr, likely))}?" if likely else f"known: {', '.join(beside)}"


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _near(word: str, other: str) -> bool:
    """Whether two words are similar, one begins the other, or one letter is mistyped."""
    return _mistyped(word, other) or bool(likeliest(word, [other]))


def _mistyped(word: str, other: str) -> bool:
    """Whether two words are equal but for one letter at most."""
    return len(word) == len(other) and sum(a != b for a, b in zip(word, other, strict=True)) <= 1
