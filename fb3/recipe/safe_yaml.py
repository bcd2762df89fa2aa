"""Reads YAML that a stranger may have written: plain values only, bounded in size and depth."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from fb3.errors import Fb3Error

LARGEST = 256 * 2**10  # bytes of a recipe or space; all settings written out have 5 kB, and YAML is read slowly
_NODES = 20_000  # keys and values; an alias counts each time that it is used
_DEPTH = 32  # levels of nesting; a recipe has five
_DIGITS = 40  # digits of a whole number
_BARE = re.compile(r"""[\s:]([^\s"'{}]*\{split\}[^\s"',}]*)""")  # a file's name without the quotes that YAML wants


class _Loader(yaml.SafeLoader):
    """The safe loader, but it refuses a key that stands twice, which YAML would drop, and texts that would grow without
    bound: aliases of aliases, aliases of themselves, values within values without end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._count = 0, 0
        self._sizes: dict[str, int] = {}  # nodes below an anchor

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event, before = self.peek_event(), self._count
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor} holds itself", event.start_mark)
            self._count += self._sizes.get(event.anchor, 0)
        self._count, self._depth = self._count + 1, self._depth + 1
        if self._count > _NODES or self._depth > _DEPTH:
            reason = f"more than {_NODES} values, or {_DEPTH} within one another"
            raise yaml.composer.ComposerError(None, None, reason, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[event.anchor] = self._count - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys: set[Any] = set()
        for place, _ in node.value:
            key = self.construct_object(place, deep=True)
            if not isinstance(key, Hashable):
                break  # super() refuses it
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", place.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.Node) -> str:
        text = super().construct_scalar(node)
        text.encode("utf-8")  # an escape may be half a surrogate pair, which no file can hold
        return text

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _DIGITS:
            reason = f"a number of {len(node.value)} digits"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str, name: str) -> Any:
    """The values of a YAML text; an Fb3Error, which names `name`, where it is not YAML or a key stands twice."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        bare = _BARE.search(text)
        mend = f'; a name with braces wants quotes: "{bare[1]}"' if bare else ""
        raise Fb3Error(f"{name}: not YAML: {' '.join(str(error).split())}{mend}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # 2024-01-45, for example
        raise Fb3Error(f"{name}: not YAML: {error}") from None
