"""The command line, in processes of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TINY


def fb3(*arguments, **variables):
    command = [sys.executable, "-m", "fb3", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables})


def test_recipes_lists_prints_and_refuses():
    assert "minilm-l6" in fb3("recipes").stdout.split()
    assert "encoder_rate: 1.0e-4" in fb3("recipes", "minilm-l6").stdout
    assert json.loads(fb3("recipes", "--schema").stdout)["title"] == "Recipe"
    wrong = fb3("recipes", "minilm")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "did you mean 'minilm-l6'" in wrong.stderr


def test_train_infer_score(competition, tmp_path, bundle):
    run = tmp_path / "run"
    small = ["data.sample=20", "tricks=[{kind: fgm}]", *TINY]
    done = fb3("train", "tiny", "--data", competition, "--out", run, "--folds", "1", *small)
    assert done.returncode == 0, done.stderr
    assert "fold 1 epoch 1" in done.stderr
    assert "--folds" in done.stderr
    out = tmp_path / "submission.csv"
    done = fb3("infer", bundle, "--data", competition, "--out", out)
    assert done.returncode == 0, done.stderr
    truth = competition.parent / "truth.csv"
    printed = json.loads(fb3("score", out, truth, "--json").stdout)
    assert set(printed) == {"score", "columns"}
    assert f"MCRMSE {printed['score']:.6f}" in fb3("score", out, truth).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tiny", "--data", "nowhere", "--out", "x"], "nowhere/train.csv: no such file"),
        (["train", "tiny", "--data", "nowhere"], "--out RUN is missing"),
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
