"""The command line: from arguments to calls. Each command imports its station only when it runs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fb3.commands.kaggle_commands import push_notebook, submit
from fb3.commands.member_commands import member
from fb3.commands.options import Competition, Data, required
from fb3.commands.picture_commands import features
from fb3.commands.pretraining_commands import pretrain
from fb3.commands.second_level import ensemble, pseudo, words
from fb3.errors import Fb3Error, Stopped
from fb3.system.progress import escape_output

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune text encoders, pack them into one folder, predict where there is no network.",
)

_STOPPED = 75  # EX_TEMPFAIL in sysexits.h: run it again


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file or a built-in name (see `fb3 recipes`).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value ...]")] = None,
    data: Data = None,
    competition: Competition = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
    folds: Annotated[str | None, typer.Option(help="Fold numbers, such as 0,1; default: all.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="A hundred essays, two folds, two epochs.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Say whether there is a save; no error where all is trained.")
    ] = False,
    stop_after: Annotated[str | None, typer.Option(help="Save and stop after this time, such as 8h30m.")] = None,
) -> None:
    """Train folds into a run folder; a stopped training resumes from its last save."""
    from fb3.recipe import load_recipe
    from fb3.system.kaggle import find_competition

    chosen = _fold_numbers(folds)
    settings = load_recipe(recipe, overrides or [], competition)
    out = required(out, "--out RUN")
    from fb3.training.run import train as run

    data = data or find_competition(names=settings.data.files.markers())
    run(settings, data, out, folds=chosen, debug=debug, resume=resume, stop_after=stop_after)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that hold folds of one run.")],
    out: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
) -> None:
    """Join folds that were trained in several sessions or on several machines."""
    from fb3.recipe import load_recipe
    from fb3.runs.joining import merge as run
    from fb3.runs.scores import caveats, named_score
    from fb3.system.file_names import RECIPE

    merged = run(runs, required(out, "--out RUN"))
    recipe = load_recipe(merged.path / RECIPE)
    named = named_score(merged.score.overall, recipe.metric, caveats(merged.path, recipe))
    print(f"{merged.path}: folds {merged.folds}, {named}")


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(help="The base: a YAML file or a built-in name.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value ...]")] = None,
    data: Data = None,
    competition: Competition = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder; an existing study is continued.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="All trials, the base included.")] = 30,
    minutes: Annotated[float | None, typer.Option(help="Time limit of this run; default: none.")] = None,
    folds: Annotated[str, typer.Option(help="The first fold is for every trial, the others for the finalists.")] = "0",
    finalists: Annotated[int, typer.Option(min=1, help="How many trials are trained on the other folds.")] = 3,
    space: Annotated[str, typer.Option(help="A YAML file or a built-in space.")] = "default",
    tries: Annotated[
        list[str] | None, typer.Option("--try", metavar="'KEY=VALUE ...'", help="A trial to begin with; repeatable.")
    ] = None,
) -> None:
    """Search for a better recipe: trials on one fold, the best of them on further folds."""
    from fb3.recipe import load_recipe
    from fb3.system.kaggle import find_competition

    chosen = _fold_numbers(folds)
    settings = load_recipe(recipe, overrides or [], competition)
    out = required(out, "--out STUDY")
    from fb3.tuning.search import tune as run

    outcome = run(
        settings,
        data or find_competition(names=settings.data.files.markers()),
        out,
        trials=trials,
        minutes=minutes,
        folds=chosen or [],
        finalists=finalists,
        space=space,
        tries=tries or [],
    )
    outcome.show()
    if outcome.interrupted:
        raise typer.Exit(130)


@app.command()
def infer(
    bundle: Annotated[Path, typer.Argument(help="The dataset folder that build_dataset.py wrote.")],
    data: Data = None,
    test: Annotated[Path | None, typer.Option(help="Predict this file instead of DIR/test.csv.")] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="The submission to write.")] = "submission.csv",
    deadline: Annotated[str | None, typer.Option(help="Finish within this time, such as 8h30m.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A fold that cannot be used is an error.")] = False,
) -> None:
    """Predict with a bundle and write a checked submission."""
    from fb3.submission.inference import infer as run

    run(bundle, data, out, test=test, deadline=deadline, strict=strict)


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="A CSV of ids and predictions.")],
    truth: Annotated[Path, typer.Argument(help="A CSV of ids and true scores.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    subset: Annotated[bool, typer.Option("--subset", help="Score the predicted ids; ignore other truths.")] = False,
    metric: Annotated[
        str | None,
        typer.Option(help="A name or FILE.py:FUNCTION; default: the run's, for a run's oof.csv, else mcrmse."),
    ] = None,
    competition: Annotated[str | None, typer.Option(help="Take this competition's metric.")] = None,
) -> None:
    """Score predictions against truths, matched by id."""
    from fb3.recipe import load_competition
    from fb3.runs.file_score import score_files
    from fb3.targets.metrics import metric_of

    metric = metric or (load_competition(competition).metric if competition else None)
    result = score_files(predictions, truth, subset=subset, metric=metric)
    if as_json:
        content = {"score": result.overall, **{k: v for k, v in result._asdict().items() if k != "overall"}}
        print(json.dumps(content, default=str))
        return
    print(f"{metric_of(result.metric).title} {result.overall:.6f}")
    for name, value in result.columns.items():
        print(f"  {name:<14}{value:.6f}")
    if result.left_out:
        print(f"not scored: {', '.join(result.left_out)}, in {truth} and no target of {predictions}")
    for caveat in result.caveats:
        print(f"no CV: {caveat}")


@app.command()
def decide(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="none, rounding, quantiles, search, argmax, class_scaling or thresholds; default: the recipe's, else "
            "by metric and task."
        ),
    ] = None,
) -> None:
    """Fit the decision, such as cut points, on the out-of-fold predictions anew, and score it honestly."""
    from fb3.runs.decide import decide_run

    print(decide_run(run, method).text())


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE|ENCODER", help="A run, bundle or pretrained encoder.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the run's train.csv, if it has moved.")] = None,
    essays: Annotated[int, typer.Option(min=0, help="Essays of each fold to predict again from the weights.")] = 0,
) -> None:
    """Check every hash, and that the out-of-fold scores recompute."""
    from fb3.verification.check import verify as run

    report = run(path, data, essays=essays)
    print(report.text())
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="The recipe to print.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes.")] = False,
) -> None:
    """List the built-in recipes, or print one."""
    from fb3.recipe import builtin_names, builtin_text, json_schema

    if schema:
        print(json_schema(), end="")
    elif name:
        print(builtin_text(name), end="")
    else:
        for each in builtin_names():
            print(each)


@app.command()
def competitions(name: Annotated[str | None, typer.Argument(help="The competition to print.")] = None) -> None:
    """List the built-in competitions, or print the defaults that one lays under a recipe."""
    from fb3.recipe.sources import builtin_text, competition_list

    print(builtin_text(name, "competition") if name else competition_list(), end="")


@app.command()
def init(
    data: Annotated[Path | None, typer.Option(help="Folder of the competition's files.")] = None,
    competition: Annotated[str | None, typer.Option(help="A built-in competition; default: found, or guessed.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The YAML to write.")] = Path("mine.yaml"),
) -> None:
    """Write a first recipe from the competition's files, and say why it is so."""
    from fb3.initial_recipe.recipe_yaml import write_initial_recipe

    print("\n".join(write_initial_recipe(required(data, "--data DIR"), out, competition)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for everything the demo makes.")] = Path("fb3-demo"),
    multimodal: Annotated[bool, typer.Option(help="Items with frames in the place of essays.")] = False,
) -> None:
    """Run the whole way on a synthetic competition: data, training, bundle, inference notebook. Under three minutes."""
    from fb3.demo.demo import run_demo

    run_demo(out, multimodal)


@app.command("image-freeze")
def image_freeze(
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The list to write; default: print it.")] = None,
) -> None:
    """Record the packages of this machine that fb3 needs; run it in a notebook of the competition."""
    from fb3.bundles.images import freeze_image

    _write_or_print(freeze_image(), out)


@app.command("wheels-lock")
def wheels_lock(
    image: Annotated[Path, typer.Argument(help="An image's list, such as wheels/images/py312.txt.")],
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The lock to write; default: print it.")] = None,
    backend: Annotated[str | None, typer.Option(help="Add the wheels of this predict.backend.")] = None,
) -> None:
    """Resolve the packages that training and inference need beyond an image, with hashes."""
    from fb3.bundles.images import read_image
    from fb3.bundles.wheels import lock_text

    _write_or_print(lock_text(read_image(image), backend), out)


@app.command()
def rehearse(
    bundle: Annotated[Path, typer.Argument(help="The dataset folder that build_dataset.py wrote.")],
    data: Data = None,
    rows: Annotated[int, typer.Option(min=1, help="Hidden rows to make.")] = 2600,
    image: Annotated[str, typer.Option(help="A name in wheels/images, or a list of your own.")] = "py312",
    keep: Annotated[Path | None, typer.Option(help="Keep inputs and outputs in this new folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the inference notebook as the competition would: no network, read-only inputs, odd hidden rows."""
    from fb3.bundles.bundle import read_bundle
    from fb3.bundles.images import find_image
    from fb3.rehearsal.rehearsal import rehearse as run
    from fb3.system.kaggle import find_competition

    if data is None:
        data = find_competition(names=read_bundle(bundle).members()[0].recipe.data.files.markers())
    report = run(bundle, data, find_image(image), rows=rows, keep=keep)
    print(report.json() if as_json else report.text())
    if not report.passed:
        raise typer.Exit(1)


app.command()(pretrain)
app.command()(features)
app.command()(ensemble)
app.add_typer(member, name="member")
app.command()(pseudo)
app.command()(words)
app.command("push-notebook")(push_notebook)
app.command()(submit)


def _write_or_print(text: str, out: str | None) -> None:
    from fb3.system.files import write_text

    print(text, end="") if out is None else write_text(text, out)


def _fold_numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise Fb3Error(f"--folds {text}: want numbers such as 0,1") from None


def main() -> None:
    """The entry point: an error that the user can mend is one line and exit status 1, a stop with a save status 75."""
    escape_output()
    try:
        app()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(_STOPPED)
    except (Fb3Error, OSError) as error:  # an OSError names its file
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
