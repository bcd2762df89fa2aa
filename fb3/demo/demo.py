"""The demo: a synthetic competition of texts, or of items with frames, a tiny encoder, a bundle, and the notebook."""

import time
from pathlib import Path

import pandas as pd

from fb3.bundles.packing import write_bundle
from fb3.demo.synthetic import ID, TARGETS, write_competition
from fb3.demo.synthetic_items import ITEMS_RECIPE, write_items
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.rehearsal.notebooks import find_notebook, run_notebook
from fb3.runs.file_score import score_files
from fb3.system.disk_space import raises_disk_full
from fb3.system.progress import as_command, escape_output, say
from fb3.targets.metrics import mcrmse
from fb3.training.run import train

TRAIN, TEST, SEED = 600, 150, 7
Rows = list[tuple[str, str]]


@raises_disk_full("out")
def run_demo(out: Path, multimodal: bool = False) -> float:
    """Runs the whole way in the folder `out` and prints a table.

    Args:
        out: a new folder.
        multimodal: items with drawn frames and a class each in the place of essays with scores.

    Returns:
        The submission's score on the hidden truths: MCRMSE of essays, macro F1 of items.

    Raises:
        Fb3Error: `out` is not empty, or a step failed.
    """
    start = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Fb3Error(f"{out}: not empty; choose another place with --out")
    score, rows, further = (_items if multimodal else _essays)(out)
    _table(
        [
            *rows,
            ("submission", str(out / "working" / "submission.csv")),
            ("executed notebook", str(out / "working" / find_notebook("inference").name)),
            ("seconds", f"{time.monotonic() - start:.0f}"),
        ]
    )
    say(f"next: {as_command(['fb3', 'train', 'tiny', '--data', out / 'data', '--out', out / 'mine', *further])}")
    return score


def _essays(out: Path) -> tuple[float, Rows, list[str]]:
    say(f"1/4 a synthetic competition: {TRAIN} essays to train on, {TEST} hidden")
    truth = write_competition(out / "data", TRAIN, TEST, SEED)
    say("2/4 training: 2 folds of a tiny DeBERTa-v2 on a tokenizer made from these essays")
    recipe = load_recipe("tiny")
    trained, score = _whole_way(out, recipe, truth)
    baseline = _baseline(out / "data" / "train.csv", truth)
    rows = [
        ("out-of-fold score (MCRMSE, lower is better)", f"{trained:.4f}"),
        ("test score of the submission", f"{score:.4f}"),
        ("test score of the column means", f"{baseline:.4f}"),
        ("lower by", f"{1 - score / baseline:.0%}"),
    ]
    return score, rows, ["train.epochs=3", "tricks=[{kind: fgm}]"]


def _items(out: Path) -> tuple[float, Rows, list[str]]:
    say(f"1/4 a synthetic competition: {TRAIN} items with a title and drawn frames to train on, {TEST} hidden")
    truth = write_items(out / "data", TRAIN, TEST, SEED)
    say("2/4 training: 2 folds of a tiny DeBERTa-v2 that reads frames and title in one stream")
    recipe = load_recipe("tiny", ITEMS_RECIPE)
    trained, score = _whole_way(out, recipe, truth)
    say("besides, the same on the titles alone")
    alone = train(load_recipe("tiny", [*ITEMS_RECIPE, "data.frames=null"]), out / "data", out / "titles").score
    rows = [
        ("out-of-fold score (macro F1, higher is better)", f"{trained:.4f}"),
        ("test score of the submission", f"{score:.4f}"),
        ("out-of-fold score of the titles alone", f"{alone.overall:.4f}"),
    ]
    return score, rows, [*ITEMS_RECIPE, "model.frames.kind=dual_stream"]


def _whole_way(out: Path, recipe: Recipe, truth: Path) -> tuple[float, float]:
    """Trains, packs and predicts in the notebook; the out-of-fold score, and the submission's."""
    run = train(recipe, out / "data", out / "run")
    say("3/4 the dataset folder, as it would be uploaded")
    write_bundle([run.path], out / "bundle", id="your-name/fb3-demo", title="fb3 demo")
    say("4/4 notebooks/inference.ipynb, executed on it")
    run_notebook(find_notebook("inference"), out / "working", {"FB3_INPUT": str(out.resolve())})
    return run.score.overall, score_files(out / "working" / "submission.csv", truth, metric=recipe.metric).overall


def _baseline(train_csv: Path, truth_csv: Path) -> float:
    """MCRMSE of predicting every column's training mean."""
    targets = list(TARGETS)
    means = pd.read_csv(train_csv, dtype={ID: str})[targets].mean()
    truth = pd.read_csv(truth_csv, dtype={ID: str})[targets]
    return mcrmse(truth.to_numpy(), pd.DataFrame([means] * len(truth)).to_numpy())


def _table(rows: Rows) -> None:
    from rich.console import Console
    from rich.table import Table

    escape_output()
    table = Table(title="fb3 demo", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
