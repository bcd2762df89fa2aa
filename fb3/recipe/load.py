"""Recipes from files, built-in names and `a.b=value` overrides, laid over the defaults of a competition."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error, RuleError
from fb3.recipe.hints import key_hint
from fb3.recipe.keys import below, dotted_keys
from fb3.recipe.recipe import Recipe
from fb3.recipe.safe_yaml import parse
from fb3.recipe.settings import kinds
from fb3.recipe.sources import competition_slug, read_source
from fb3.recipe.training import FORMER_DEFAULTS
from fb3.system.progress import as_command

_BEGIN = re.compile(r"(?:^|\s)([A-Za-z_][\w.]*)\s*([=:])")  # an override's key


def load_recipe(source: str | Path, overrides: Iterable[str] = (), competition: str | Path | None = None) -> Recipe:
    """Reads a recipe: overrides over the recipe, over the competition, over the defaults.

    Args:
        source: a YAML file or the name of a built-in recipe.
        overrides: `key.sub=value` texts; the value is read as YAML and checked by the field's type.
        competition: a YAML file, or the name of a built-in competition, for the settings that the recipe leaves out;
            none: the defaults. A group of another `kind` in the recipe replaces the competition's.

    Raises:
        Fb3Error: no such file or name, not YAML, an unknown key, a wrong value, a competition that changes nothing.
    """
    settings, name = read_source(source, "recipe")
    if competition is not None and isinstance(settings, dict):
        settings, name = _laid_over(settings, name, competition)
    recipe = Recipe.from_mapping(settings, name)
    overrides = list(overrides)
    recipe = overridden(recipe, overrides) if overrides else recipe
    if recipe.competition and (slug := competition_slug(recipe.competition)) != recipe.competition:
        raise Fb3Error(
            f"{name}: competition: this key holds Kaggle's name, {slug}; to lay that competition's settings under the "
            f"recipe, give --competition {recipe.competition} and leave the key out"
        )
    return recipe


def load_competition(source: str | Path) -> Recipe:
    """A competition's settings over the defaults, from a YAML file, or built in, by its name or Kaggle's.

    Raises:
        Fb3Error: see `load_recipe`.
    """
    return Recipe.from_mapping(*read_source(source, "competition"))


def _laid_over(settings: dict, name: str, competition: str | Path) -> tuple[dict, str]:
    """A recipe's own settings over a competition's, and a name for the errors."""
    below, defaults = (each.model_dump(mode="json") for each in (load_competition(competition), Recipe()))
    own, slug = settings.get("competition"), below["competition"]
    if own and slug and own != slug:
        raise Fb3Error(f"{name}: is a recipe for the competition {own}; leave --competition {competition} out")
    merged = _merged(below, settings)
    if merged == _merged(defaults, settings) and below != defaults:
        raise Fb3Error(f"{name}: gives every setting of --competition {competition} itself; leave that out")
    return merged, f"{name} on competition {competition}"


def overridden(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A recipe with `key.sub=value` texts on top.

    Raises:
        Fb3Error: an unknown key or a wrong value; a RuleError where only a rule refuses them.
    """
    overrides = list(overrides)
    try:
        return _overridden(recipe, overrides)
    except RuleError:
        raise
    except Fb3Error as error:
        if meant := _repaired(recipe, overrides):
            raise Fb3Error(f"{error}; quote it: {as_command(meant)}") from None
        raise


def _overridden(recipe: Recipe, overrides: list[str]) -> Recipe:
    merged = recipe.model_dump(mode="json")
    for override in overrides:  # checked together: two may be right only in company
        merged = _merged(merged, _override(override))
    return Recipe.from_mapping(merged, "overrides " + " ".join(overrides))


def differences(here: Recipe, there: Recipe) -> list[str]:
    """The settings in which two recipes differ, such as `train.epochs: 1 there, 9 here`."""

    def walk(one: Any, other: Any, path: str) -> Iterator[str]:
        if isinstance(one, dict) and isinstance(other, dict):
            same_kind = one.get("kind") == other.get("kind")  # another kind has other settings: they say nothing more
            for key in dict.fromkeys([*one, *other]) if same_kind else [key for key in one if key in other]:
                yield from walk(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        elif one != other:
            yield f"{path}: {other!r} there, {one!r} here"

    return list(walk(here.model_dump(mode="json"), there.model_dump(mode="json"), ""))


def _override(override: str) -> dict:
    """Nested settings from `a.b=value`; refuses a key that no group has."""
    source = f"override {override!r}"
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise Fb3Error(f"{source}: want key.sub=value")
    check_key(key, source)
    settings = parse(value, source)
    for part in reversed(key.split(".")):
        settings = {part: settings}
    return settings


def check_key(key: str, source: str) -> None:
    """Refuses a dotted key that no group has; the error names `source` and the likeliest known key."""
    known, path = dotted_keys(Recipe), key.split(".")
    for depth in range(len(path)):
        beside = below(".".join(path[:depth]), known)
        if beside and path[depth] not in beside:
            raise Fb3Error(f"{source}: unknown key {key}; {key_hint(key, known, beside)}")


def _repaired(recipe: Recipe, overrides: list[str]) -> list[str]:
    """Overrides as they were meant, where a shell split them or took their quotes, or spaces surround the sign.

    Only overrides that change are returned; none where no such mistake explains the error.
    """
    known, text = dotted_keys(Recipe), " ".join(overrides)
    if any(found[1] not in known for found in map(_BEGIN.match, overrides) if found and found[2] == "="):
        return []
    begins = [found for found in _BEGIN.finditer(text) if found[1] in known]
    if not begins or begins[0].start():
        return []
    ends = [*(found.start() for found in begins[1:]), len(text)]
    out = [_meant(recipe, begin[1], text[begin.end() : end].strip()) for begin, end in zip(begins, ends, strict=True)]
    return [each for each in out if each not in overrides] if all(out) and _accepted(recipe, out) else []


def _meant(recipe: Recipe, key: str, value: str) -> str:
    """The first override that is accepted: the value as it is, brackets closed, spaces after colons, or quoted."""
    closers = {"[": "]", "{": "}"}
    missing: list[str] = []
    for sign in value:
        missing = [closers[sign], *missing] if sign in closers else missing[1:] if sign in missing[:1] else missing
    forms = [value, value + "".join(missing), re.sub(r":(?=\w)", ": ", value)]
    if not (value.startswith("[") and value.endswith("]")):  # a quoted list would be read as a list of one text
        forms.append(json.dumps(value, ensure_ascii=False))
    return next((each for form in forms if value and _accepted(recipe, [each := f"{key}={form}"])), "")


def _accepted(recipe: Recipe, overrides: list[str]) -> bool:
    """Whether overrides are of the right form; a rule may still refuse them."""
    try:
        _overridden(recipe, overrides)
    except RuleError:
        return True
    except Fb3Error:
        return False
    return True


def _merged(base: dict, over: dict, shared: Any = None) -> dict:
    """`over` on top of `base`, group by group.

    A mapping of another `kind` replaces the old one whole, but not in a union whose kinds share most settings, such as
    the optimizers: there a rate survives a change of kind.
    """
    if over.get("kind", base.get("kind")) != base.get("kind"):
        if shared is None:
            return over
        base = _changed(base, shared)
    out = dict(base)
    for key, value in over.items():
        union = Recipe.model_fields[key].annotation if key in FORMER_DEFAULTS else None
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        out[key] = _merged(base[key], value, union) if both else value
    return out


def _changed(settings: dict, union: Any) -> dict:
    """The settings that differ from the defaults of their kind: another kind may lack the others."""
    member = kinds(union).get(str(settings["kind"]))
    defaults = member.model_construct().model_dump(mode="json") if member else {}
    return {key: value for key, value in settings.items() if key not in defaults or defaults[key] != value}
