import json
import shutil

import pytest

from fb3.recipe import load_recipe
from fb3.runs.file_score import score_files
from fb3.runs.scores import caveats, named_score
from tests.builtin import OF_TEXTS
from tests.conftest import copied


def test_the_cv_of_a_run_from_its_files(run, competition):
    score = score_files(run / "oof.csv", competition / "train.csv")
    assert score.overall == pytest.approx(json.loads((run / "scores.json").read_text())["score"], abs=1e-6)


def test_a_score_that_is_no_cv_is_called_otherwise(run, tmp_path):
    recipe = load_recipe(run / "recipe.yaml")
    assert caveats(run, recipe) == []
    assert named_score(0.5, "qwk", []) == "CV QWK 0.5000"
    partly = copied(run, tmp_path / "partly")
    info = json.loads((partly / "fold1" / "fold.json").read_text())
    (partly / "fold1" / "fold.json").write_text(json.dumps({k: v for k, v in info.items() if k != "finished"}))
    unfinished = caveats(partly, recipe)
    shutil.rmtree(partly / "fold1")
    assert unfinished == caveats(partly, recipe) == ["folds [1] of 2 are not trained to their end"]
    assert named_score(0.5, "mcrmse", unfinished) == (
        "out-of-fold MCRMSE 0.5000 (no CV: folds [1] of 2 are not trained to their end)"
    )
    assert caveats(run, recipe.debug()) == ["a --debug run, 60 essays and 2 epochs"]
    few = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sample": 60})})
    assert caveats(run, few) == ["trained on a sample of 60 essays (data.sample)"]


def test_debug_is_known_by_its_settings_alone():
    for name in OF_TEXTS:
        recipe = load_recipe(name)
        assert not recipe.is_debug()
        assert recipe.debug().is_debug()
        assert load_recipe(
            name, ["data.sample=100", "folds.count=2", "train.epochs=2", "folds.holdout=null"]
        ).is_debug()
    assert not load_recipe("tiny", ["data.sample=100", "folds.count=2", "train.epochs=3"]).is_debug()
