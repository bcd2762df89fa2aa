"""The commands of the second level, on runs that are trained; `fb3.cli` wires them."""

from pathlib import Path
from typing import Annotated

import typer

from fb3.commands.options import Data, required


def ensemble(
    members: Annotated[list[Path], typer.Argument(metavar="RUN|OOF.csv ...", help="Out-of-fold predictions by id.")],
    out: Annotated[Path | None, typer.Option(help="The ensemble's folder to write.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="equal, shrunk, greedy or simplex; default: shrunk, where that is surely better than equal."),
    ] = None,
    data: Data = None,
    competition: Annotated[str | None, typer.Option(help="Take target and metric from this competition.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Take them from this recipe; default: the first run's.")] = None,
) -> None:
    """Weigh runs and other predictions by their out-of-fold predictions, and score the weights honestly."""
    from fb3.ensembles.ensemble import weigh

    print(weigh(members, required(out, "--out ENSEMBLE"), method, data, competition, recipe).text())
