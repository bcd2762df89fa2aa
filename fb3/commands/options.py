"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from fb3.errors import Fb3Error

Data = Annotated[Path | None, typer.Option(help="Folder of the competition's files: train.csv, test.csv, …")]
Competition = Annotated[str | None, typer.Option(help="Lay these defaults under the recipe (see `fb3 competitions`).")]


def required(value: Path | None, option: str) -> Path:
    """The value of an option that a command cannot do without; an Fb3Error where it is not given."""
    if value is None:
        raise Fb3Error(f"{option} is missing")
    return value
