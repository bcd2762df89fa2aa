"""Both notebooks in a real kernel, with the network cut."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile

import nbformat
import pandas as pd
import pytest

from fb3.bundles.bundle import verify_bundle
from fb3.bundles.images import find_image
from fb3.bundles.packing import write_bundle
from fb3.errors import Fb3Error
from fb3.models.from_scratch import build_backbone
from fb3.recipe import load_recipe
from fb3.rehearsal.notebooks import find_notebook, run_notebook
from fb3.rehearsal.sandbox import importable, namespace_command, run_in_sandbox
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256
from fb3.training.run import train
from tests.conftest import ROOT, copied

RUN = """
import sys
from pathlib import Path
from fb3.rehearsal.notebooks import find_notebook, run_notebook
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


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The stratifier's wheel, put together again from what is installed here, and a lock for this very Python."""
    folder = tmp_path_factory.mktemp("wheels")
    found = importlib.metadata.distribution("iterative-stratification")
    wheel = folder / f"iterative_stratification-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in found.files:
            if "__pycache__" not in file.parts:
                archive.write(file.locate(), file.as_posix())
    lock = folder / f"py{sys.version_info.major}{sys.version_info.minor}.lock"
    lock.write_text(f"iterative-stratification=={found.version} --hash=sha256:{sha256(wheel)}\n")
    return [wheel, lock]


@pytest.fixture(scope="module")
def source(wheels, tmp_path_factory):
    """What `build_dataset.py --source-only` makes."""
    return write_bundle([], tmp_path_factory.mktemp("source") / "source", wheels=wheels, source_only=True).path


@pytest.fixture
def session(tmp_path, without_network):
    """Runs a notebook as Kaggle does: network cut, inputs read-only, only what the image and the inputs have.

    Its function takes the notebook's name, inputs by the place where they are mounted, and variables; it gives the
    working folder and the error.
    """
    modules, prefix = importable(find_image("py312")), namespace_command()

    def run(notebook, inputs, name="working", **variables):
        variables = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", **variables}
        folder = tmp_path / name
        result = run_in_sandbox(find_notebook(notebook), inputs, ".", folder, modules, prefix, variables)
        return folder / "working", result["error"]

    return run


def test_the_road_on_kaggle_from_source_and_wheels_to_a_submission(session, source, competition, texts, tmp_path):
    """Two training sessions, because the first one's time ends, then inference on the output of the second."""
    backbone = tmp_path / "backbone"
    build_backbone(load_recipe("tiny").model.scratch, pd.Series(texts), backbone, seed=0)
    public = copied(competition, tmp_path / "public")
    for name in ("test.csv", "sample_submission.csv"):
        pd.read_csv(public / name).head(3).to_csv(public / name, index=False)
    attached = {
        "datasets/me/fb3-source": source,
        "competitions/essays": public,
        "models/microsoft/deberta-v3-base/transformers/default/1": backbone,
    }
    wish = {"FB3_RECIPE": "tiny", "FB3_OVERRIDES": "model.backbone=microsoft/deberta-v3-base", "FB3_DEBUG": "1"}
    first, error = session("train", attached, "first", FB3_STOP_AFTER="0s", **wish)
    assert error is None
    assert "the time is up: fold 0 is saved after step 1 of" in (first / "train.ipynb").read_text()
    assert "no fold is trained to its end" in (first / "train.ipynb").read_text()
    assert "attach its output to this notebook" in (first / "train.ipynb").read_text()
    assert {path.name for path in first.iterdir()} == {"run", "train.ipynb"}

    second, error = session("train", {**attached, "notebooks/me/train": first}, "second", **wish)
    assert error is None
    assert {path.name for path in second.iterdir()} == {"run", "bundle", "train.ipynb"}
    kept = {path.relative_to(second / "run").as_posix() for path in (second / "run").rglob("*") if path.is_file()}
    assert kept == {
        *("recipe.yaml", "folds.csv", "oof.csv", "scores.json", "environment.json", "log.jsonl"),
        *("fold0/fold.json", "fold1/fold.json"),
    }
    packed = verify_bundle(second / "bundle")
    assert packed.manifest["runs"] == [
        {"name": "run", "folds": [0, 1], "caveats": ["a --debug run, 60 essays and 2 epochs"]}
    ]
    assert packed.manifest["parity"]["largest_difference"].keys() == {"run/fold0", "run/fold1"}
    assert {path.name for path in (second / "bundle" / "wheels").iterdir()} == {
        path.name for path in (source / "wheels").iterdir()
    }
    score = read_json(second / "run" / "scores.json")["score"]
    assert f"out-of-fold MCRMSE {score:.4f} (no CV: a --debug run" in (second / "train.ipynb").read_text()
    recipe = load_recipe("tiny", [f"model.backbone={backbone}"])
    whole = train(recipe, competition, tmp_path / "whole", debug=True)
    assert score == whole.score.overall, "stopped and taken up again, it ends as it would have ended"

    inputs = {"datasets/me/fb3-source": source, "competitions/essays": public, "notebooks/me/train": second}
    working, error = session("inference", inputs, "third")
    assert error is None
    written = pd.read_csv(working / "submission.csv")
    assert written["text_id"].tolist() == pd.read_csv(public / "sample_submission.csv")["text_id"].tolist()
    expected = infer(second / "bundle", public, tmp_path / "s.csv", strict=True)
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, atol=1e-5)
    report = read_json(working / "submission.report.json")
    assert [fold["status"] for fold in report["folds"]] == ["used", "used"]


def test_source_alone_does_not_predict_and_says_what_to_attach(session, source, competition):
    _, error = session("inference", {"fb3-source": source, "essays": competition})
    assert "want one bundle with a trained run under" in error
    assert "the output of the training notebook" in error


def test_training_without_source_or_wheels_says_what_to_attach(session, competition, tmp_path):
    bare = write_bundle([], tmp_path / "bare", source_only=True).path
    for name, inputs in (("none", {"essays": competition}), ("bare", {"essays": competition, "bare": bare})):
        _, error = session("train", inputs, name)
        assert "attach the data set of `python build_dataset.py --source-only" in error


def test_a_failing_cell_is_told(tmp_path):
    with pytest.raises(Fb3Error, match="want one bundle with a trained run under"):
        run_notebook(find_notebook("inference"), tmp_path / "working", {"FB3_INPUT": str(tmp_path)})
    assert (tmp_path / "working" / "inference.ipynb").is_file()
