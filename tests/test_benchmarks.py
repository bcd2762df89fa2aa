"""Benchmarks: gpu.py in its small form, end to end on the CPU, where no step costs another; ablation.py's pieces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fb3.ensembles.comparison import METHODS, Stack
from fb3.ensembles.members import read_members
from fb3.recipe import load_recipe
from fb3.recipe.model import PoolingSettings
from fb3.recipe.settings import kinds
from fb3.recipe.tricks import TrickSettings
from fb3.targets.metrics import METRICS
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import ablation
import compare
import decisions
import ensembles
import gpu
import gpu_steps


def test_all_steps_end_and_each_is_in_the_file_at_once(tmp_path):
    out = tmp_path / "out" / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--out", str(out)]
    given = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | given)
    lines, written = [], {}
    for line in process.stdout:
        lines.append(line.rstrip())
        if not line.startswith(" "):  # a step has ended
            written[line.split()[0]] = json.loads(out.read_text())
    assert process.wait() == 0, "\n".join(lines)
    names = ["device", "tests-test_gpu", "infer-tiny-64", "train-tiny-64", "startup"]
    assert list(written) == names
    for number, name in enumerate(names, 1):
        assert list(written[name]["steps"]) == names[:number]
    steps = written["startup"]["steps"]
    assert {step["status"] for step in steps.values()} == {"done"}
    assert steps["device"]["found"]["bf16_tflops"] > 0
    assert steps["tests-test_gpu"]["found"].keys() == {"skipped"}
    for name in ("infer-tiny-64", "train-tiny-64"):
        rows = steps[name]["found"]["rows"]
        assert [row["who"] for row in rows] == ["plain", "trainer", "fb3"]
        assert all(row["agrees"] and row["mfu"] > 0 and row["essays_a_second"] > 0 for row in rows), rows
        assert rows[0]["ratio"] == 1
    assert steps["startup"]["found"]["phases"]["all"] <= steps["startup"]["found"]["whole_s"]
    assert [line for line in lines if "fb3" in line and "essays/s" in line and "MFU" in line]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process with CUDA cannot be forked")
def test_a_step_that_crashes_fails_or_hangs_costs_itself_alone(tmp_path, monkeypatch, capsys):
    """Processes that are forked, so that the steps take no time."""
    monkeypatch.setattr(gpu, "SMALL", {("a",): 60, ("b",): 60, ("c",): 1, ("d", "x/e.py"): 60, ("last",): 60})

    def long(step, work, out, small):
        print("begun" + 5000 * ".")
        out.write_text('{"answer": 0.5}')

    monkeypatch.setattr(gpu_steps, "run", long)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(tmp_path / "gpu.json")])
    monkeypatch.setenv(gpu.BREAK, "a=crash,b=raise,c=hang")
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert [step["status"] for step in steps.values()] == [
        "ended by SIGSEGV",
        "failed",
        "stopped after 1 s",
        "done",
        "done",
    ]
    assert list(steps) == ["a", "b", "c", "d-e", "last"]
    assert "RuntimeError: FB3_GPU_BREAK wishes so" in steps["b"]["said"]
    assert [step["found"] for step in steps.values()] == [None, None, None, {"answer": 0.5}, {"answer": 0.5}]
    assert len(steps["last"]["said"]) < 5000
    assert (tmp_path / "gpu.last.txt").read_text().startswith("begun")
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [f"gpu.{name}.txt" for name in steps]
    said = capsys.readouterr().out
    assert "RuntimeError: FB3_GPU_BREAK wishes so" in said
    assert "answer: 0.5" in said


def test_without_time_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(tmp_path / "gpu.json"), "--minutes", "0"])
    with pytest.raises(SystemExit):
        gpu.main()
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert list(steps) == list(map(gpu.name_of, gpu.SMALL))
    assert {step["status"] for step in steps.values()} == {"no time: 0 s left"}


def test_a_step_that_does_not_exist_is_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "x"), "--steps", "nothing"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--steps: nothing; there are device, tests-test_gpu" in capsys.readouterr().err


TESTS = """
import os, signal, time

def test_a(): pass
def test_b(): assert 0
def test_crash(): os.kill(os.getpid(), signal.SIGSEGV)
def test_c(): pass
def test_hang(): time.sleep(600)
def test_d(): pass
"""


def test_a_test_that_crashes_or_hangs_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(TESTS)
    monkeypatch.setattr(gpu_steps, "ROOT", tmp_path)
    written = []
    with pytest.raises(SystemExit, match="3 of 6 failed: "):
        gpu_steps.check("test_some.py", tmp_path, True, written.append, quiet=12)
    assert written[-1]["passed"] == 3
    assert written[-1]["not passed"] == {
        "test_some.py::test_b": "FAILED",
        "test_some.py::test_crash": "ended with -11",
        "test_some.py::test_hang": "ended with -9",
    }
    assert written[0] == {"passed": 1}


def test_scores_that_differ_count_for_no_ratio():
    found = {who: {"seconds": [9.0, 1.0], "out": None, "peak_gib": 0.0} for who in ("plain", "fb3", "wrong")}
    found["failing"] = {"seconds": [], "failed": "OutOfMemoryError"}
    apart = {"plain": 0.001, "fb3": 0.002, "wrong": float("nan")}
    rows = gpu_steps.rows_of(found, "fp16", 10, 1e12, 4e12, apart, gpu_steps._below(apart, 0.003))
    assert [row.get("agrees") for row in rows] == [True, True, False, None]
    assert [row.get("mfu") for row in rows] == [0.25, 0.25, 0.25, None]
    lines = gpu.lines_of("infer", {"status": "done", "seconds": 1.0, "found": {"rows": rows}, "said": ""})
    assert ["apart!" in line for line in lines] == [False, False, False, True, False]
    assert "OutOfMemoryError" in lines[-1]


def test_a_loop_that_takes_no_step_is_no_training():
    moved, near = {"fb3": 1.1, "idle": 0.0}, gpu_steps._below({"fb3": 0.01, "idle": 0.01}, 0.05)
    assert [gpu_steps._trained(who, near, moved) for who in moved] == [True, False]


@pytest.mark.parametrize("name", ablation.PIECES)
def test_a_piece_of_the_ablation_is_a_recipe_of_its_own(name):
    size = [
        line for line in ablation.SMALL if line.split("=")[0] not in {o.split("=")[0] for o in ablation.PIECES[name]}
    ]
    base = load_recipe(ablation.RECIPE, size)
    assert load_recipe(ablation.RECIPE, [*size, *ablation.PIECES[name]]) != base


def test_the_ablation_measures_every_trick_and_pooling():
    pieces = " ".join(line for lines in ablation.PIECES.values() for line in lines)
    held = load_recipe(ablation.RECIPE).model.pooling.kind
    for kind in [*kinds(TrickSettings), *kinds(PoolingSettings)]:
        assert f"kind: {kind}" in pieces or kind == held, kind


def test_the_bootstrap_gives_the_error_of_a_difference():
    """Against the formula for a single column: the standard error of the mean square over twice the root."""
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 3000, 1)) ** 2 * [[[1.0]], [[0.8]]]
    found, columns = compare.bootstrap(one, other, 1000, seed=0)
    slopes = (other - other.mean()) / (2 * other.mean() ** 0.5) - (one - one.mean()) / (2 * one.mean() ** 0.5)
    assert found.std() == pytest.approx(slopes.std() / 3000**0.5, rel=0.1)
    assert found.mean() == pytest.approx(other.mean() ** 0.5 - one.mean() ** 0.5, abs=0.002)
    assert columns.shape == (1000, 1)
    assert not compare.bootstrap(one, one, 5, seed=0)[0].any(), "the same draws for both"


def test_decisions_are_scored_on_the_essays_that_they_were_not_fitted_on():
    draw = np.random.default_rng(0)
    truth = draw.integers(1, 7, (300, 1)).astype(float)
    found = decisions.kappas(truth, 3.5 + 0.5 * (truth - 3.5) + draw.normal(0, 0.3, truth.shape), "quantiles", 3, 0.5)
    assert found.shape == (3, 2)
    assert len(np.unique(found)) == 6


AES2 = Path(os.environ.get("FB3_AES2", ROOT.parent / "shared" / "data" / "aes2-oof"))


@pytest.mark.skipif(not (AES2 / "oof.csv").is_file(), reason="FB3_AES2 names no folder with AES 2.0's oof.csv")
def test_cut_points_on_real_predictions_have_their_known_kappa():
    table = decisions.read(AES2)
    rounding, quantiles, search = (
        decisions.kappas(*table, method, 20, 0.5)[:, 1].mean() for method in ("rounding", "quantiles", "search")
    )
    assert (rounding, quantiles) == (pytest.approx(0.8041, abs=5e-4), pytest.approx(0.8229, abs=5e-4))
    assert search == pytest.approx(quantiles, abs=1e-3)


def test_ensembles_are_compared_on_random_splits():
    draw = np.random.default_rng(0)
    truth = draw.normal(3, 0.7, (120, 2))
    members = truth + draw.normal(0, 0.4, (3, 120, 2))
    stacks = [Stack(members, truth, draw.permutation(120) % 3, METRICS["mcrmse"], ["a", "b"]) for _ in range(2)]
    found = ensembles.compare(stacks)
    assert [len(fits) for fits in found.values()] == [2] * 8
    assert all(gain == 0 for _, gain, _ in found["equal"])


OOF = Path(os.environ.get("FB3_OOF", "nowhere"))


@pytest.mark.skipif(not (OOF / "v3small.csv").is_file(), reason="FB3_OOF names no folder of FB3's out-of-fold CSVs")
def test_real_members_have_their_known_honest_scores():
    members = read_members(sorted(OOF.glob("*.csv")), OOF.parent / "fb3", competition="feedback-ell")
    folds = np.random.default_rng(0).permutation(3911) % 5
    columns = members.recipe.data.target_columns
    stack = Stack(members.predicted, members.truth, folds, METRICS["mcrmse"], columns)
    equal, shrunk, greedy, simplex = (stack.fit(method, False).honest for method in METHODS)
    assert equal == pytest.approx(0.44444, abs=1e-5)
    assert (greedy, simplex) == (pytest.approx(0.44319, abs=2e-4), pytest.approx(0.44318, abs=2e-4))
    assert shrunk == pytest.approx(0.44312, abs=2e-4)
