"""A search space: which keys of a recipe may change, and between which values.

optimizer.encoder_rate: {low: 3.0e-5, high: 3.0e-4, log: true}
train.epochs: {low: 2, high: 5}
model.pooling.layers: {low: 2, high: 12, step: 2}
tricks: {choices: [[], [{kind: fgm}]]}
regularise: {overrides: true, choices: [[], ["model.dropout=0.1", "task.r_drop={alpha: 1.0}"]]}
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from fb3.errors import Fb3Error, RuleError
from fb3.recipe.hints import explain, key_hint
from fb3.recipe.keys import dotted_keys
from fb3.recipe.load import check_key, overridden
from fb3.recipe.recipe import Recipe
from fb3.recipe.safe_yaml import LARGEST, parse
from fb3.recipe.settings import Settings
from fb3.recipe.training import FORMER_DEFAULTS
from fb3.system.files import read_utf8

_MOST_CHOICES = 200  # choices of an entry; each is tried on the recipe before a search begins
_BUILTIN = files("fb3.tuning") / "spaces"
# Keys that decide how a score is made: scores under two values do not compare, or differ by luck alone.
_FIXED = (
    "data.id_column",
    "data.prepare",
    "data.sample",
    "data.target_columns",
    "data.text_column",
    "decision",
    "folds",
    "metric",
    "task.classes",
    "task.location",
    "task.maximum",
    "task.minimum",
    "task.scale",
    "train.save_every_minutes",
    "train.save_every_steps",
    "train.seed",
    "train.trackers",
)


def _number(value: Any) -> int | float:
    """A finite number; YAML takes 3e-5, without a point, for a text."""
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError("want a number")
    return number


Number = Annotated[Any, BeforeValidator(_number)]


class _Entry(Settings):
    when: str | None = None
    """An override, such as task.kind=regression: the entry counts only for a base that it would leave as it is."""


class Range(_Entry):
    """Numbers between two ends; whole numbers if low, high and step are written as such."""

    low: Number
    """The smallest."""
    high: Number
    """The largest."""
    log: bool = False
    """Draw evenly by the order of magnitude; right for rates."""
    step: Number | None = None
    """Distance between two numbers, counted from low; none: 1 for whole numbers, else any."""

    @model_validator(mode="after")
    def _a_range(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must lie below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log wants low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("give log or step, not both")
        if self.step is not None and (self.step <= 0 or not _whole((self.high - self.low) / self.step)):
            raise ValueError(f"steps of {self.step} do not lead from {self.low} to {self.high}")
        return self

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole numbers."""
        return all(isinstance(end, int) for end in (self.low, self.high, 1 if self.step is None else self.step))

    def holds(self, value: Any) -> bool:
        """Whether the value could be drawn."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        on_step = self.step is None or _whole((value - self.low) / self.step)
        return self.low <= value <= self.high and on_step


class Choice(_Entry):
    """One of several values."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)]
    """The values: any YAML."""
    overrides: bool = False
    """Each choice is a list of `key=value` overrides, none of which may be in it; the entry's name is then free."""

    @model_validator(mode="after")
    def _distinct(self) -> "Choice":
        if len(self.choices) > _MOST_CHOICES:
            raise ValueError(
                f"{len(self.choices)} choices, at most {_MOST_CHOICES}; numbers are better given as a range"
            )
        for choice in self.choices:
            if self.overrides and not (isinstance(choice, list) and all(isinstance(o, str) for o in choice)):
                raise ValueError(f"with overrides, a choice is a list of key=value texts, not {choice!r}")
        if len(self.labelled) < len(self.choices):
            raise ValueError("a choice stands there twice")
        return self

    @cached_property
    def labelled(self) -> dict[str, Any]:
        """The choices by their labels: the text that stands for each in the study."""
        if self.overrides:
            return {" ".join(choice) or "unchanged": choice for choice in self.choices}
        return {_text(choice): choice for choice in self.choices}


Entry = Range | Choice
Parameters = Mapping[str, Any]  # a number of a range or a label of a choice, by an entry's name


@dataclass(frozen=True)
class Space:
    """The keys that a search may change, and their values; `source` is named in errors, `text` is its YAML."""

    entries: dict[str, Entry]
    source: str
    text: str

    def overrides(self, parameters: Parameters) -> list[str]:
        """The overrides that parameters stand for."""
        return [each for name, value in parameters.items() for each in self._overrides(name, value)]

    def locate(self, base: Recipe, recipe: Recipe) -> dict[str, Any] | None:
        """The parameters that make `recipe` from `base`; none if no parameters of the space do."""
        found: dict[str, Any] = {}
        for name, entry in self.entries.items():
            for value in _candidates(name, entry, recipe):
                if _agree(recipe, self._overrides(name, value), recipe):
                    found[name] = value
                    break
            else:
                return None
        return found if _agree(base, self.overrides(found), recipe) else None

    def fitting(self, base: Recipe) -> "Space":
        """The space without the entries whose `when` the base does not meet.

        Raises:
            Fb3Error: nothing is left, or a `when` is no override.
        """
        for name, entry in self.entries.items():
            if entry.when is not None:
                key, equals, _ = entry.when.partition("=")
                if not equals:
                    raise Fb3Error(f"{self.source}: {name}: when: want key.sub=value, got {entry.when!r}")
                check_key(key, f"{self.source}: {name}: when")
        left = {n: entry for n, entry in self.entries.items() if not entry.when or _agree(base, [entry.when], base)}
        if not left:
            raise Fb3Error(f"{self.source}: every entry has a `when` that the base recipe does not meet")
        return Space(left, self.source, self.text)

    def check(self, base: Recipe) -> None:
        """Tries each entry alone on the recipe.

        Raises:
            Fb3Error: a key is unknown, must not change within a search, or is set by two entries; or a value has the
                wrong form. A value that only a rule between keys refuses passes: another entry may make it right.
        """
        keys = {name: self._keys(name, entry) for name, entry in self.entries.items()}
        for (one, ones), (other, others) in combinations(keys.items(), 2):
            if both := [key for key in ones if any(overlap(key, another) for another in others)]:
                raise Fb3Error(
                    f"{self.source}: {one} and {other} both set {both[0]}; put their combinations into one choice"
                )
        for name, entry in self.entries.items():
            for value in (entry.low, entry.high) if isinstance(entry, Range) else entry.labelled:
                try:
                    overridden(base, self._overrides(name, value))
                except RuleError:
                    pass
                except Fb3Error as error:
                    raise Fb3Error(f"{self.source}: {name}: {error}") from None

    def _overrides(self, name: str, value: Any) -> list[str]:
        entry = self.entries[name]
        if isinstance(entry, Choice):
            value = entry.labelled[value]
            return list(value) if entry.overrides else [f"{name}={_text(value)}"]
        return [f"{name}={value if entry.whole else _text(float(f'{value:.6g}'))}"]

    def _keys(self, name: str, entry: Entry) -> list[str]:
        """The recipe's keys that an entry sets."""
        if not isinstance(entry, Choice) or not entry.overrides:
            if "." not in name and name not in Recipe.model_fields:
                likely = key_hint(name, dotted_keys(Recipe), list(Recipe.model_fields))
                hint = "a name of your own wants overrides: true"
                raise Fb3Error(f"{self.source}: unknown key {name}; {likely}; {hint}")
            check_key(name, self.source)
            refuse_fixed([name], self.source)
            return [name]
        for choice in entry.choices:
            keys = [override.partition("=")[0] for override in choice]
            if twice := [a for a, b in combinations(keys, 2) if overlap(a, b)]:
                raise Fb3Error(f"{self.source}: {name}: one choice sets {twice[0]} twice")
            for key in keys:
                check_key(key, f"{self.source}: {name}")
            refuse_fixed(keys, f"{self.source}: {name}")
        return list(dict.fromkeys(override.partition("=")[0] for choice in entry.choices for override in choice))


def read_space(source: str | Path) -> Space:
    """Reads a search space.

    Args:
        source: a YAML file or the name of a built-in space.

    Raises:
        Fb3Error: no such file or name, not YAML, a wrong entry; names file and key.
    """
    built_in = {entry.name.removesuffix(".yaml"): entry for entry in _BUILTIN.iterdir() if entry.name.endswith(".yaml")}
    path = Path(source)
    if str(source) in built_in:
        text, name = built_in[str(source)].read_text(encoding="utf-8"), f"built-in space {source}"
    elif path.is_file():
        text, name = read_utf8(path, LARGEST), str(path)
    else:
        raise Fb3Error(f"{path}: no such space; give a YAML file or a built-in one, {', '.join(sorted(built_in))}")
    settings = parse(text, name)
    if not isinstance(settings, dict) or not settings:
        raise Fb3Error(f"{name}: a space is a mapping from recipe keys to ranges and choices")
    return Space({str(key): _entry(value, f"{name}: {key}") for key, value in settings.items()}, name, text)


def refuse_fixed(keys: list[str], source: str) -> None:
    """Refuses keys that a search must leave as they are; the error names the first such key."""
    for key in keys:
        if any(overlap(key, fixed) for fixed in _FIXED):
            raise Fb3Error(f"{source}: {key} must not change within a search: its scores would not compare")


def overlap(one: str, other: str) -> bool:
    """Whether one dotted key is the other, or lies within it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _entry(settings: Any, source: str) -> Entry:
    if not isinstance(settings, dict):
        raise Fb3Error(f"{source}: want {{low, high}} or {{choices: [...]}}, got {settings!r}")
    kind = Choice if "choices" in settings or "overrides" in settings else Range
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        errors = [explain(kind, e).removeprefix("recipe: ") for e in error.errors()]
        raise Fb3Error(f"{source}: " + "; ".join(errors)) from None


def _candidates(name: str, entry: Entry, recipe: Recipe) -> Iterator[Any]:
    """Parameters of an entry that could have made the recipe; choices with more overrides first."""
    if isinstance(entry, Choice):
        yield from sorted(entry.labelled, key=lambda label: -len(entry.labelled[label]) if entry.overrides else 0)
        return
    node: Any = recipe.model_dump(mode="json")
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if node is None:  # a setting of another kind: at its former default it is read and changes nothing
        group, _, key = name.partition(".")
        node = FORMER_DEFAULTS.get(group, {}).get(key)
    if entry.holds(node):
        yield node


def _agree(base: Recipe, overrides: list[str], recipe: Recipe) -> bool:
    try:
        return overridden(base, overrides) == recipe
    except Fb3Error:
        return False


def _text(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6
