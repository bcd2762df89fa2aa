"""The command that pretrains an encoder on texts; `fb3.cli` wires it."""

from pathlib import Path
from typing import Annotated

import typer

from fb3.commands.options import Competition, Data, required


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A YAML file or a built-in name; its group `pretrain` decides.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value ...]")] = None,
    data: Data = None,
    texts: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A further table of texts; may be given several times.")
    ] = None,
    competition: Competition = None,
    out: Annotated[Path | None, typer.Option(help="The encoder's folder to write.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Save and stop after this time, such as 8h30m.")] = None,
) -> None:
    """Pretrain the backbone on the competition's texts and frames; a stopped pretraining goes on from its last save."""
    from fb3.pretraining.run_pretraining import pretrain_encoder
    from fb3.recipe import load_recipe
    from fb3.system.kaggle import find_competition

    settings = load_recipe(recipe, overrides or [], competition)
    out = required(out, "--out ENCODER")
    data = data or find_competition(names=settings.data.files.markers())
    pretrain_encoder(settings, data, out, texts or [], stop_after=stop_after)
