"""The commands that reach Kaggle; `fb3.cli` wires them."""

from pathlib import Path
from typing import Annotated

import typer

Slug = Annotated[str | None, typer.Option(help="The competition, by Kaggle's name or a built-in one.")]
Packed = Annotated[Path | None, typer.Option(help="The bundle's folder, which names data set and competition.")]


def push_notebook(
    kernel: Annotated[str, typer.Argument(metavar="OWNER/SLUG", help="The notebook on Kaggle.")],
    bundle: Packed = None,
    dataset: Annotated[str | None, typer.Option(help="The bundle's data set, owner/slug.")] = None,
    competition: Slug = None,
    pinning: Annotated[str, typer.Option(help="The image to run on: original or latest.")] = "original",
    title: Annotated[str | None, typer.Option(help="The notebook's title; it must give the slug.")] = None,
) -> None:
    """Push the inference notebook: internet off, two T4s, data set and competition attached."""
    from fb3.rehearsal.notebooks import find_notebook
    from fb3.upload.bundle_names import competition_name, dataset_name
    from fb3.upload.notebook import push_notebook as push

    names = {"dataset": dataset_name(bundle, dataset), "competition": competition_name(bundle, competition)}
    version = push(find_notebook("inference"), kernel, **names, pinning=pinning, title=title)
    print(f"{kernel}: version {version} pushed; next: fb3 submit {kernel} --version {version}")


def submit(
    kernel: Annotated[str, typer.Argument(metavar="OWNER/SLUG", help="The notebook on Kaggle.")],
    bundle: Packed = None,
    competition: Slug = None,
    version: Annotated[int | None, typer.Option(help="The notebook's version; default: the latest.")] = None,
    message: Annotated[str, typer.Option(help="Describes the submission.")] = "",
) -> None:
    """Wait until a pushed notebook has run, show the end of its log, and submit it."""
    from fb3.upload.bundle_names import competition_name
    from fb3.upload.notebook import submit_notebook

    competition = competition_name(bundle, competition) if bundle or competition else None
    print(submit_notebook(kernel, competition, version=version, message=message))
