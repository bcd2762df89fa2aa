"""YAML files of recipes and competitions: built-in ones by their names, others by their paths."""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error, nearest
from fb3.recipe.safe_yaml import LARGEST, parse
from fb3.system.files import read_utf8

_FOLDERS = {"recipe": "builtin", "competition": "competitions"}  # by the word for what is in them
_MENDS = {
    "recipe": "that is a competition: name a recipe, such as tiny, and give --competition beside it",
    "competition": "that is a recipe: it stands first, and --competition names one of `fb3 competitions`",
}
_SLUG = re.compile(r"^competition: (\S+)", re.MULTILINE)


def builtin_names(what: str = "recipe") -> list[str]:
    """The names of the built-in recipes, or with `competition` of the built-in competitions."""
    entries = (files("fb3.recipe") / _FOLDERS[what]).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def builtin_text(name: str, what: str = "recipe") -> str:
    """The YAML of a built-in recipe, with its comments; for an unknown name, an Fb3Error names the nearest.

    With `competition` it is a built-in competition's, which may have Kaggle's name too.
    """
    known = builtin_names(what)
    if name not in known:
        shorts = (each for each in known if what == "competition" and competition_slug(each) == name)
        if (short := next(shorts, None)) is None:
            mend = _MENDS[what] if any(name in builtin_names(other) for other in _FOLDERS) else nearest(name, known)
            raise Fb3Error(f"no built-in {what} {name!r}; {mend}")
        name = short
    return (files("fb3.recipe") / _FOLDERS[what] / f"{name}.yaml").read_text(encoding="utf-8")


def competition_list() -> str:
    """The built-in competitions, a line each: the name, and the first comment of its YAML."""
    names = builtin_names("competition")
    return "".join(f"{each:<24}{builtin_text(each, 'competition').splitlines()[0][2:]}\n" for each in names)


def competition_slug(name: str) -> str:
    """Kaggle's name of a built-in competition; any other name, and one that Kaggle does not know, stays as it is."""
    found = _SLUG.search(builtin_text(name, "competition")) if name in builtin_names("competition") else None
    return found[1] if found else name


def read_source(source: str | Path, what: str) -> tuple[Any, str]:
    """The settings in a YAML file or a built-in one, and a name for the errors.

    Raises:
        Fb3Error: no such file or name, or not YAML.
    """
    path, source = Path(source), str(source)
    if source not in builtin_names(what) and os.path.isfile(path):  # noqa: PTH113 - Path's raises for impossible names
        text, name = read_utf8(path, LARGEST), source
    elif path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise Fb3Error(f"{path}: no such {what} file")
    else:
        text, name = builtin_text(source, what), f"built-in {what} {source}"
    settings = parse(text, name)
    _find_prepare(settings, path.absolute().parent)
    return {} if settings is None else settings, name


def _find_prepare(settings: Any, folder: Path) -> None:
    """Makes data.prepare an absolute path, where the file stands beside the YAML file."""
    data = settings.get("data") if isinstance(settings, dict) else None
    file = data.get("prepare") if isinstance(data, dict) else None
    if isinstance(file, str) and os.path.isfile(folder / file):  # noqa: PTH113 - Path's raises for impossible names
        data["prepare"] = str(folder / file)
