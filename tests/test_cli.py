"""The command line, in processes of its own."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from fb3.system.files import write_csv
from tests.conftest import ROOT, TINY
from tests.initial_recipe.forms import write_form


def fb3(*arguments, **variables):
    command = [sys.executable, "-m", "fb3", *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", env=environment)


def test_recipes_lists_prints_and_refuses():
    assert "minilm-l6" in fb3("recipes").stdout.split()
    assert "encoder_rate: 1.0e-4" in fb3("recipes", "minilm-l6").stdout
    assert json.loads(fb3("recipes", "--schema").stdout)["title"] == "Recipe"
    wrong = fb3("recipes", "minilm")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "did you mean 'minilm-l6'" in wrong.stderr


def test_competitions_are_listed_printed_laid_under_a_recipe_and_read_from_files(tmp_path):
    listed = fb3("competitions").stdout.splitlines()
    assert any(line.startswith("aes2 ") and "quadratic weighted kappa" in line for line in listed)
    assert "\nmetric: qwk\n" in fb3("competitions", "aes2").stdout
    data = write_form("aes2", tmp_path / "data")
    done = fb3("init", "--data", data, "--out", tmp_path / "mine.yaml")
    assert done.stdout.startswith("these are the files of aes2; ")
    other = fb3("train", "tiny", "--competition", "us-patent", "--data", data, "--out", tmp_path / "run")
    assert "no column ['id', 'target', 'anchor', 'context']" in other.stderr
    truth = tmp_path / "truth.csv"
    assert fb3("score", truth, truth, "--competition", "aes2").stdout.startswith("QWK 1.000000")
    wrong = fb3("submit", "me/it", "--bundle", tmp_path)
    assert "no bundle" in wrong.stderr


def test_train_infer_score(competition, tmp_path, bundle):
    run = tmp_path / "run"
    small = ["data.sample=20", "tricks=[{kind: fgm}]", *TINY]
    done = fb3("train", "tiny", "--data", competition, "--out", run, "--folds", "1", *small)
    assert done.returncode == 0, done.stderr
    assert "fold 1 epoch 1" in done.stderr
    assert "--folds" in done.stderr
    assert "(no CV: trained on a sample of 20 essays (data.sample); folds [0] of 2 are not" in done.stderr
    out = tmp_path / "submission.csv"
    done = fb3("infer", bundle, "--data", competition, "--out", out)
    assert done.returncode == 0, done.stderr
    truth = competition.parent / "truth.csv"
    printed = json.loads(fb3("score", out, truth, "--json").stdout)
    assert set(printed) == {"score", "metric", "columns", "left_out", "caveats"}
    assert "no CV" not in done.stdout
    assert f"MCRMSE {printed['score']:.6f}" in fb3("score", out, truth).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tiny", "--data", "nowhere", "--out", "x"], "nowhere/train.csv: no such file"),
        (["train", "tiny", "--data", "nowhere"], "--out RUN is missing"),
        (["train", "aes2", "--data", "nowhere", "--out", "x"], "that is a competition: name a recipe, such as tiny"),
        (["init"], "--data DIR is missing"),
        (["push-notebook", "me/it", "--dataset", "me/that"], "--competition NAME is missing; or give --bundle DIR"),
        (["train", "tiny", "train.epoch=1", "--data", "nowhere", "--out", "x"], "did you mean 'train.epochs'"),
        (["train", "tiny", "--data", "nowhere", "--out", "x", "--folds", "a"], "want numbers such as 0,1"),
        (["infer", "nowhere"], "nowhere: no bundle"),
        (["score", "nowhere.csv", "nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(arguments, words):
    done = fb3(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


_NO_TORCH = """
import runpy, sys
sys.argv = [{script!r}, *{arguments!r}]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as ended:
    said = ended.code
print("torch" in sys.modules, said)
"""


def test_what_is_wrong_is_told_before_torch_is_imported(competition, tmp_path):
    """One process for all: none of them may import torch, and an import is for good."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    empty, data = str(tmp_path / "empty"), ["--data", str(competition)]
    out = ["--out", str(tmp_path / "out")]
    fb3, build = str(ROOT / "fb3" / "__main__.py"), str(ROOT / "build_dataset.py")
    cases = [
        (fb3, ["train", "tiny", "--data", empty, *out], "empty/train.csv: no such file"),
        (fb3, ["train", "tinny", *data, *out], "did you mean 'tiny'"),
        (fb3, ["train", "tiny", *data, *out, "--folds", "9"], "no fold [9]; there are [0, 1]"),
        (fb3, ["train", "tiny", *data, "--out", str(tmp_path / "file" / "run")], "cannot be made"),
        (fb3, ["train", "tiny", f"model.backbone={empty}", *data, *out], "config.json is missing"),
        (fb3, ["train", "tiny", f"model.backbone={empty}/x", *data, *out], "no such folder"),
        (fb3, ["tune", "tiny", "--data", empty, *out], "empty/train.csv: no such file"),
        (fb3, ["tune", "tiny", *data, *out, "--folds", "0,9"], "want different ones of [0, 1]"),
        (fb3, ["tune", "tiny", *data, *out, "--space", "none"], "no such space"),
        (fb3, ["merge", empty, empty, "--out", str(tmp_path / "new")], "empty/recipe.yaml: no such recipe file"),
        (fb3, ["ensemble", empty, empty, *out], "give --competition NAME"),
        (fb3, ["verify", empty], "neither a run folder"),
        (fb3, ["rehearse", empty, *data], "no bundle"),
        (fb3, ["rehearse", str(tmp_path / "bundle"), *data], "not a bundle's manifest"),
        (build, [empty, "--out", str(tmp_path / "new")], "no run folder"),
        (build, [empty, "--out", str(tmp_path / "file"), "--int8"], "is there and is no bundle"),
    ]
    lines = [_NO_TORCH.format(script=script, arguments=arguments) for script, arguments, _ in cases]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    printed = done.stdout.splitlines()
    assert len(printed) == len(cases), done.stderr
    said = iter(done.stderr.splitlines())
    for (_, arguments, words), line in zip(cases, printed, strict=True):
        imported, _, code = line.partition(" ")
        assert imported == "False", arguments
        assert words in (next(said) if code == "1" else code), arguments


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda variables: "-".join(variables.values()),
)
def test_a_score_reaches_terminals_that_are_not_utf_8(tmp_path, variables):
    table = pd.DataFrame({"text_id": ["x", "y"], "Gesamt-größe→": [1.0, 2.0]})
    path = tmp_path / "p.csv"
    write_csv(table, path)
    done = fb3("score", path, path, PYTHONIOENCODING=variables.pop("PYTHONIOENCODING", ""), **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MCRMSE 0.000000\n  Gesamt-gr")
    assert "\\u2192" in done.stdout


_PRINTED = """
import sys
from pathlib import Path
from fb3.tuning.trials import Outcome, Row
row = Row(0, "base", "complete", {0: 0.5}, 1.0, {}, ["data.id_column=größe→"])
Outcome(Path("größe→"), Path("data"), [row], [0]).show()
from fb3.demo.demo import _table
_table([("größe→", "x")])
from fb3.cli import main
sys.argv = ["fb3", "verify", sys.argv[1]]
main()
"""


def test_what_functions_and_reports_print_is_escaped_too(tmp_path):
    broken = tmp_path / "größe→"
    broken.mkdir()
    (broken / "recipe.yaml").write_text("{}")
    command = [sys.executable, "-c", _PRINTED, str(broken)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert r"fb3 train 'gr\xf6\xdfe\u2192/best.yaml' --data data --out 'gr\xf6\xdfe\u2192-best'" in done.stdout
    assert r"gr\xf6\xdfe\u2192: run, 4 faults" in done.stdout


def test_build_dataset_ends_well_on_an_ascii_terminal(run, tmp_path):
    command = [sys.executable, "build_dataset.py", run, "--out", tmp_path / "größe→", "--no-wheels", "--no-parity"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe\u2192: 2 folds of 1 runs" in done.stdout
    assert done.stdout.endswith("--data DIR\n")
