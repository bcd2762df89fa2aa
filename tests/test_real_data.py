"""A short run on the real essays with a real encoder, where they are at hand."""

import os
from pathlib import Path

import pytest

from fb3.bundles.packing import write_bundle
from fb3.recipe import load_recipe
from fb3.submission.inference import infer
from fb3.training.run import train
from tests.conftest import ROOT

DATA = Path(os.environ.get("FB3_DATA", ROOT.parent / "shared" / "data" / "fb3"))
BACKBONE = Path(os.environ.get("FB3_BACKBONE", ROOT.parent / "shared" / "models" / "minilm-l6"))

pytestmark = pytest.mark.skipif(
    not (DATA / "train.csv").is_file() or not (BACKBONE / "config.json").is_file(),
    reason="no competition data or no encoder; set FB3_DATA and FB3_BACKBONE",
)


def test_debug_training_and_a_submission(tmp_path, no_sockets):
    recipe = load_recipe("minilm-l6", [f"model.backbone={BACKBONE}", "data.max_length=128"])
    run = train(recipe, DATA, tmp_path / "run", folds=[0], debug=True)
    assert run.score.overall < 1.0
    bundle = write_bundle([run.path], tmp_path / "bundle", weights="fp16")
    submission = infer(bundle.path, DATA, tmp_path / "submission.csv")
    assert len(submission) == 3
