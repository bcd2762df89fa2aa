"""Options that several commands have."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fb3.errors import Fb3Error

if TYPE_CHECKING:
    from fb3.recipe import Recipe

Data = Annotated[Path | None, typer.Option(help="Folder of the competition's files: train.csv, test.csv, …")]
Competition = Annotated[str | None, typer.Option(help="Lay these defaults under the recipe (see `fb3 competitions`).")]


def settings_of(recipe: str | None, competition: str | None) -> "Recipe":
    """The recipe of --recipe and --competition; the defaults where neither is given."""
    from fb3.recipe import Recipe, load_competition, load_recipe

    if recipe:
        return load_recipe(recipe, competition=competition)
    return load_competition(competition) if competition else Recipe()


def required(value: Path | None, option: str) -> Path:
    """The value of an option that a command cannot do without; an Fb3Error where it is not given."""
    if value is None:
        raise Fb3Error(f"{option} is missing")
    return value
