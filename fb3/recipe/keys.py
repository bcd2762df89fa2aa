"""The keys of a recipe, and the likeliest for one that is none."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any, get_args, get_origin

from fb3.errors import likeliest, nearest
from fb3.recipe.settings import Settings

_LIKE = 0.75  # least likeness of a hint: metric and tricks have 0.67, epoch and epochs 0.91


def known_keys(model: type[Settings], path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand in the group at `path`, for messages; empty where the path leaves the groups.

    In a validation error's path a union's member stands as its kind and a list's item as its index.
    """
    members = [model]
    for part in path:
        by_kind = [
            m for m in members if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)
        ]
        if isinstance(part, int):
            continue
        if by_kind:
            members = by_kind
        elif len(members) == 1 and part in members[0].model_fields:
            members = list(_groups_in(members[0].model_fields[part].annotation))
        else:
            return []
    return list(members[0].model_fields) if len(members) == 1 else []


def _groups_in(annotation: Any, lists: bool = True) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation) if lists or get_origin(annotation) is not tuple else ():
        yield from _groups_in(inner, lists)


@cache
def dotted_keys(model: type[Settings]) -> tuple[str, ...]:
    """All keys that an override can name, such as train and train.epochs, those of every kind; none within lists."""

    def walk(group: type[Settings], above: str) -> Iterator[str]:
        for name, field in group.model_fields.items():
            yield above + name
            for inner in _groups_in(field.annotation, lists=False):
                yield from walk(inner, f"{above}{name}.")

    return tuple(dict.fromkeys(walk(model, "")))


def below(key: str, known: Sequence[str]) -> list[str]:
    """The names directly below a dotted key; empty where anything may stand there, or nothing."""
    start = f"{key}." if key else ""
    return [other.removeprefix(start) for other in known if other.startswith(start) and "." not in other[len(start) :]]


def without_kinds(model: type[Settings], path: Sequence[str | int]) -> str:
    """The path of a validation error as an override names it: without the kinds of unions."""
    known, key = dotted_keys(model), ""
    for part in path[:-1]:
        longer = f"{key}.{part}".lstrip(".")
        key = longer if longer in known else key
    return f"{key}.{path[-1]}".lstrip(".")


def key_hint(key: str, known: Sequence[str], beside: Sequence[str]) -> str:
    """The end of a sentence about a key that is none.

    Args:
        key: dotted.
        known: dotted keys. Those with the same last part come first, then those that look alike.
        beside: what may stand where the key went wrong, listed where nothing is like it.
    """
    above, _, last = key.rpartition(".")
    others = [other for other in known if other != key and not key.startswith(f"{other}.")]
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
    """Whether a word is alike, the beginning of the other, or the other with one letter mistyped."""
    typo = len(word) == len(other) and sum(a != b for a, b in zip(word, other, strict=True)) <= 1
    return typo or bool(likeliest(word, [other]))


def explain(model: type[Settings], error: Any) -> str:
    """One error of pydantic's in words: key, what is wrong, value or nearest known key."""
    path = error["loc"]
    key = ".".join(str(part) for part in path) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}; {_hint(model, path)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in {"model_type", "model_attributes_type"}:  # an item of a list, such as a trick, has its kind
        keys = known_keys(model, path) or ["kind"]
        message = f"holds keys of its own ({', '.join(keys)}), such as {{{keys[0]}: …}}"
    elif error["type"] == "tuple_type":
        message = "want a list in brackets"
    if isinstance(error["input"], (dict, list, Settings)):
        return f"{key}: {message}"
    return f"{key}: {message}, got {error['input']!r}"


def _hint(model: type[Settings], path: tuple[str | int, ...]) -> str:
    known, key, beside = dotted_keys(model), without_kinds(model, path), known_keys(model, path[:-1])
    if any(isinstance(part, int) for part in path):
        return nearest(str(path[-1]), beside)
    # A key of another kind is no hint to itself.
    return f"known: {', '.join(beside)}" if key in known else key_hint(key, known, beside)
