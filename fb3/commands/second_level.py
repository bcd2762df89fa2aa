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
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Take members trained by models that saw their validation essays.")
    ] = False,
) -> None:
    """Weigh runs and other predictions by their out-of-fold predictions, and score the weights honestly."""
    from fb3.ensembles.ensemble import weigh

    print(weigh(members, required(out, "--out ENSEMBLE"), method, data, competition, recipe, allow_leaks).text())


def pseudo(
    teacher: Annotated[Path, typer.Argument(metavar="RUN|ENSEMBLE", help="A run folder, or an ensemble's folder.")],
    essays: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Essays to label; default: none, for pseudo.use=distil alone.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of labels to write.")] = None,
    hard: Annotated[
        bool, typer.Option("--hard", help="A class, yes or no, or a step of the scale; default: soft.")
    ] = False,
    agreement: Annotated[
        float | None, typer.Option(help="Keep this share of the essays, on which the members agree most.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Keep essays whose likeliest label has at least this probability.")
    ] = None,
    data: Data = None,
) -> None:
    """Label essays for each fold by models that saw none of its validation essays; see pseudo.folder of a recipe."""
    from fb3.pseudo_labels.pseudo_folder import Filters, label_essays

    filters = Filters(hard, agreement, confidence)
    print("\n".join(label_essays(teacher, required(out, "--out PSEUDO"), essays, data, filters)))
