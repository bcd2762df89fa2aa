"""The demo: a synthetic competition, a tiny encoder, a bundle, and the inference notebook run on it."""

import time
from pathlib import Path

import pandas as pd

from fb3.bundles.packing import write_bundle
from fb3.demo.synthetic import ID, TARGETS, write_competition
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.rehearsal.notebooks import find_notebook, run_notebook
from fb3.runs.file_score import score_files
from fb3.system.disk_space import raises_disk_full
from fb3.system.progress import as_command, escape_output, say
from fb3.targets.metrics import mcrmse
from fb3.training.run import train

TRAIN, TEST, SEED = 600, 150, 7


@raises_disk_full("out")
def run_demo(out: Path) -> float:
    """Runs the whole way in the folder `out` and prints a table.

    Returns:
        The test score divided by the baseline's: 0.8 is 20 % lower.

    Raises:
        Fb3Error: `out` is not empty, or a step failed.
    """
    start = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Fb3Error(f"{out}: not empty; choose another place with --out")
    notebook = find_notebook("inference")
    say(f"1/4 a synthetic competition: {TRAIN} essays to train on, {TEST} hidden")
    data = out / "data"
    truth = write_competition(data, TRAIN, TEST, SEED)
    say("2/4 training: 2 folds of a tiny DeBERTa-v2 on a tokenizer made from these essays")
    run = train(load_recipe("tiny"), data, out / "run")
    say("3/4 the dataset folder, as it would be uploaded")
    write_bundle([run.path], out / "bundle", id="your-name/fb3-demo", title="fb3 demo")
    say("4/4 notebooks/inference.ipynb, executed on it")
    working = out / "working"
    run_notebook(notebook, working, {"FB3_INPUT": str(out.resolve())})
    submission = working / "submission.csv"
    score = score_files(submission, truth).overall
    baseline = _baseline(data / "train.csv", truth)
    _table(
        [
            ("out-of-fold score (MCRMSE, lower is better)", f"{run.score.overall:.4f}"),
            ("test score of the submission", f"{score:.4f}"),
            ("test score of the column means", f"{baseline:.4f}"),
            ("lower by", f"{1 - score / baseline:.0%}"),
            ("submission", str(submission)),
            ("executed notebook", str(working / notebook.name)),
            ("seconds", f"{time.monotonic() - start:.0f}"),
        ]
    )
    further = ["train.epochs=3", "tricks=[{kind: fgm}]"]
    say(f"next: {as_command(['fb3', 'train', 'tiny', '--data', data, '--out', out / 'mine', *further])}")
    return score / baseline


def _baseline(train_csv: Path, truth_csv: Path) -> float:
    """MCRMSE of predicting every column's training mean."""
    targets = list(TARGETS)
    means = pd.read_csv(train_csv, dtype={ID: str})[targets].mean()
    truth = pd.read_csv(truth_csv, dtype={ID: str})[targets]
    return mcrmse(truth.to_numpy(), pd.DataFrame([means] * len(truth)).to_numpy())


def _table(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    escape_output()
    table = Table(title="fb3 demo", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
