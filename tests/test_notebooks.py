"""Both notebooks in a real kernel, the inference one with the network cut; and the demo."""

import json
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from fb3.errors import Fb3Error
from fb3.inference import infer
from fb3.notebook import find_notebook, run_notebook
from tests.conftest import ROOT, copied

RUN = """
import sys
from pathlib import Path
from fb3.notebook import find_notebook, run_notebook
run_notebook(find_notebook("inference"), Path(sys.argv[1]), {"FB3_INPUT": sys.argv[2]})
"""


@pytest.mark.parametrize("name", ["train", "inference"])
def test_notebooks_are_wiring(name):
    code = [cell for cell in nbformat.read(find_notebook(name), as_version=4).cells if cell.cell_type == "code"]
    assert len(code) <= 5
    for cell in code:
        assert not re.search(r"^\s*(async\s+)?(def|class)\s", cell.source, re.M)
        assert not cell.outputs


def test_the_inference_notebook_with_the_network_cut(bundle, competition, tmp_path, without_network):
    inputs = tmp_path / "input"
    copied(bundle, inputs / "datasets" / "me" / "bundle")
    copied(competition, inputs / "competitions" / "fb3")
    working = tmp_path / "working"
    command = [*without_network, sys.executable, "-c", RUN, str(working), str(inputs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    written = pd.read_csv(working / "submission.csv")
    expected = infer(bundle, competition, tmp_path / "s.csv")
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, atol=1e-5)


def test_the_training_notebook(competition, tmp_path):
    inputs = copied(competition, tmp_path / "input" / "data").parent
    env = {"FB3_INPUT": str(inputs), "FB3_RECIPE": "tiny", "FB3_DEBUG": "1"}
    executed = run_notebook(find_notebook("train"), tmp_path / "working", env)
    scores = json.loads((tmp_path / "working" / "run" / "scores.json").read_text())
    assert f"{scores['score']:.4f}" in executed.read_text()


def test_a_failing_cell_is_told(tmp_path):
    with pytest.raises(Fb3Error, match="want one fb3 data set under"):
        run_notebook(find_notebook("inference"), tmp_path / "working", {"FB3_INPUT": str(tmp_path)})
    assert (tmp_path / "working" / "inference.ipynb").is_file()


def test_the_demo_beats_the_column_means_clearly(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "fb3", "demo", "--out", str(out)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "next: fb3 train" in done.stderr
    lower = int(re.search(r"lower by\D+(\d+)%", done.stdout)[1])
    assert lower >= 15
    submission = pd.read_csv(out / "working" / "submission.csv")
    sample = pd.read_csv(out / "data" / "sample_submission.csv")
    assert submission["text_id"].tolist() == sample["text_id"].tolist()
    assert not (out / "bundle" / "wheels").exists()
    again = subprocess.run([sys.executable, "-m", "fb3", "demo", "--out", str(out)], capture_output=True, text=True)
    assert again.returncode == 1
    assert "not empty" in again.stderr
