"""The keys of a recipe, read from the settings classes."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from fb3.recipe.settings import Settings


def known_keys(model: type[Settings], path: Sequence[str | int]) -> list[str]:
    """The keys of the group at a validation error's path; for a union, the keys that all its members have."""
    members, _ = _follow(model, path)
    first = members[0].model_fields if members else {}
    return [name for name in first if all(name in member.model_fields for member in members)]


def dotted(model: type[Settings], path: Sequence[str | int]) -> str:
    """A validation error's path as an override writes it: without the kinds of unions outside lists."""
    return _follow(model, path)[1]


def kinds_with(model: type[Settings], path: Sequence[str | int]) -> list[str]:
    """The kinds that have the key which the kind in a validation error's path lacks; none within lists."""
    union, _ = _follow(model, path[:-2])
    tags = [] if any(isinstance(part, int) for part in path) else [kind for member in union for kind in _kinds(member)]
    members = [member for member in union if path[-1] in member.model_fields] if {*path[-2:-1]} & {*tags} else []
    return [kind for member in members for kind in _kinds(member)]


def _follow(model: type[Settings], path: Sequence[str | int]) -> tuple[list[type[Settings]], str]:
    """The classes at the end of a validation error's path, none where it leaves the groups, and the path as a key.

    In such a path the member of a union stands as its kind, the item of a list as its index.
    """
    members, key = [model], []
    for number, part in enumerate(path):
        of_kind = [member for member in members if part in _kinds(member)]
        members = of_kind or members
        if not of_kind or any(isinstance(above, int) for above in path[:number]):
            key.append(str(part))
        if not of_kind and not isinstance(part, int):
            known = len(members) == 1 and part in members[0].model_fields
            members = list(_groups_in(members[0].model_fields[part].annotation)) if known else []
    return members, ".".join(key)


def _kinds(member: type[Settings]) -> tuple[str, ...]:
    """The names by which a path may call a class: its kinds, or its own name in a union with plain values."""
    return get_args(member.model_fields["kind"].annotation) if "kind" in member.model_fields else (member.__name__,)


def _groups_in(annotation: Any, lists: bool = True) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation) if lists or get_origin(annotation) is not tuple else ():
        yield from _groups_in(inner, lists)


@cache
def dotted_keys(model: type[Settings]) -> tuple[str, ...]:
    """All keys that an override can name, such as train and train.epochs, of every kind; none within lists."""

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
