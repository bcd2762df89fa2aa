"""The commands of the second level, on runs that are trained; `fb3.cli` wires them."""

from pathlib import Path
from typing import Annotated

import typer

from fb3.commands.options import Competition, Data, required, settings_of
from fb3.errors import Fb3Error


def ensemble(
    members: Annotated[list[Path], typer.Argument(metavar="RUN|OOF.csv ...", help="Out-of-fold predictions by id.")],
    out: Annotated[Path | None, typer.Option(help="The ensemble's folder to write.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="equal, shrunk, greedy or simplex; default: shrunk, where that is surely better than equal."),
    ] = None,
    blend: Annotated[
        str | None, typer.Option(help="values, logits, votes or ranks; default: ranks for AUC and Spearman's.")
    ] = None,
    data: Data = None,
    competition: Annotated[str | None, typer.Option(help="Take target and metric from this competition.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Take them from this recipe; default: the first run's.")] = None,
    limit: Annotated[
        str | None, typer.Option(help="Choose the members that fit into a time at inference, such as 2h.")
    ] = None,
    essays: Annotated[int | None, typer.Option(min=1, help="Essays for --limit; default: the test's, or 2700.")] = None,
    machine: Annotated[str | None, typer.Option(help="Machine of --limit: t4 (by FLOPs) or here (measured).")] = None,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Take members trained by models that saw their validation essays.")
    ] = False,
) -> None:
    """Weigh runs and other predictions by their out-of-fold predictions, and score the weights honestly."""
    from fb3.ensembles.ensemble import weigh

    out, time_limit = required(out, "--out ENSEMBLE"), None
    if limit is None and (essays or machine):
        raise Fb3Error("--essays and --machine go with --limit")
    if limit is not None:
        from fb3.submission.run_seconds import price_members

        members, time_limit = price_members(members, limit, essays, machine or "t4", data)
    print(weigh(members, out, method, data, competition, recipe, time_limit, allow_leaks, blend).text())


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


def words(
    vectors: Annotated[
        Path | None, typer.Argument(metavar="[VECTORS.txt]", help="word2vec's text format or GloVe's; .gz, .zip too.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Train the vectors on the texts instead.")] = False,
    data: Data = None,
    texts: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A CSV of more texts, without scores; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The encoder's folder to write.")] = None,
    keep: Annotated[
        int, typer.Option(min=0, help="Keep so many words of the file, most frequent first, beside the texts' own.")
    ] = 100_000,
    size: Annotated[int, typer.Option(min=2, help="Numbers of a trained vector.")] = 200,
    window: Annotated[int, typer.Option(min=1, help="Neighbours on each side, for --train.")] = 5,
    recipe: Annotated[str | None, typer.Option(help="Take files and columns from this recipe.")] = None,
    competition: Competition = None,
) -> None:
    """Make an encoder of static word vectors, to train with model.backbone=ENCODER or model.stitch.backbone=ENCODER."""
    if train == bool(vectors):
        raise Fb3Error("give a file of vectors, or --train to train them on the texts")
    out, data = required(out, "--out ENCODER"), required(data, "--data DIR")
    settings = settings_of(recipe, competition)
    from fb3.models.word_encoder import build_word_encoder

    build_word_encoder(settings, data, out, vectors=vectors, further=texts or [], keep=keep, size=size, window=window)
