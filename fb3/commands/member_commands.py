"""`fb3 member`: estimators on fixed features; `fb3.cli` wires it."""

import re
from pathlib import Path
from typing import Annotated

import typer

from fb3.commands.options import Competition, Data, required, settings_of
from fb3.errors import Fb3Error

Model = Annotated[str, typer.Option("--model", help="svr, ridge, logistic, lightgbm or knn.")]
RunFolder = Annotated[Path | None, typer.Option(help="The run folder to write.")]
OtherRecipe = Annotated[str | None, typer.Option(help="Take columns, target, metric and folds from this recipe.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value ...]")]
member = typer.Typer(no_args_is_help=True, help="Train a classical estimator on fixed features, a run like any other.")


@member.command()
def embeddings(
    encoders: Annotated[
        list[str], typer.Argument(metavar="ENCODER|RUN ... [key.sub=value ...]", help="Their vectors, side by side.")
    ],
    model: Model = "svr",
    data: Data = None,
    out: RunFolder = None,
    recipe: OtherRecipe = None,
    competition: Competition = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers counted from the top, such as 1,2; the last 4 else.")
    ] = None,
) -> None:
    """Frozen mean vectors of encoders, or of a run's fine-tuned ones, and statistics of the texts."""
    overrides = [each for each in encoders if _is_override(each)]
    chosen = [each for each in encoders if each not in overrides]
    taken = {"kind": "embeddings", "layers": None if layers is None else _numbers(layers)}
    runs = [each for each in chosen if (Path(each) / "recipe.yaml").is_file()]
    base = recipe or (None if competition or not runs else str(Path(runs[0]) / "recipe.yaml"))
    _train_member(base, competition, model, [{"encoder": each, **taken} for each in chosen], overrides, data, out, True)


@member.command()
def tfidf(
    overrides: Overrides = None,
    model: Model = "ridge",
    data: Data = None,
    out: RunFolder = None,
    recipe: OtherRecipe = None,
    competition: Competition = None,
) -> None:
    """Counts of words and of characters within words, weighed by how rare they are."""
    words = {"kind": "tfidf", "of": "words"}
    characters = {"kind": "tfidf", "of": "characters", "shortest": 2, "longest": 5}
    _train_member(recipe, competition, model, [words, characters], overrides or [], data, out, False)


@member.command()
def frames(
    overrides: Overrides = None,
    model: Model = "logistic",
    data: Data = None,
    out: RunFolder = None,
    recipe: OtherRecipe = None,
    competition: Competition = None,
) -> None:
    """The mean of an item's frames (data.frames), without its texts."""
    _train_member(recipe, competition, model, [{"kind": "frames"}], overrides or [], data, out, False)


def _is_override(text: str) -> bool:
    return bool(re.match(r"[a-z_]+(\.\w+)*=", text)) and not Path(text).exists()


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise Fb3Error(f"--layers {text}: want numbers counted from the top, such as 1,2") from None


def _train_member(
    base: str | None,
    competition: str | None,
    model: str,
    features: list[dict],
    overrides: list[str],
    data: Path | None,
    out: Path | None,
    statistics: bool,
) -> None:
    from fb3.recipe.member_recipe import member_recipe
    from fb3.system.kaggle import find_competition

    made = member_recipe(settings_of(base, competition), model, features, overrides, statistics)
    out = required(out, "--out RUN")
    from fb3.training.run import train

    train(made, data or find_competition(names=made.data.files.markers()), out)
