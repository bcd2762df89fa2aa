import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fb3.cli import app
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.decide import decide_run, ensemble_decision, read_decision
from fb3.runs.file_score import score_files
from fb3.runs.scores import decision_in_words
from fb3.targets.decisions import Decision, decide
from fb3.targets.metrics import METRICS


@pytest.fixture
def whole(tmp_path):
    """A run folder's recipe and oof.csv for one target of whole numbers, scored by kappa."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(
        load_recipe("tiny", ["metric=qwk", "data.target_columns=[score]", "task.maximum=6"]).to_yaml()
    )
    draw = np.random.default_rng(0)
    truth = np.minimum(draw.poisson(1.5, 200) + 1, 6)
    table = pd.DataFrame({"text_id": [f"t{k}" for k in range(200)], "fold": np.arange(200) % 4, "true_score": truth})
    table["score"] = (2.5 + 0.5 * (truth - 2.5) + draw.normal(0, 0.4, 200)).astype(np.float32)
    table.to_csv(run / "oof.csv", index=False)
    table[["text_id", "fold"]].to_csv(run / "folds.csv", index=False)
    return run


def test_a_decision_is_fitted_scored_written_and_read(whole):
    assert read_decision(whole) is None
    done = CliRunner().invoke(app, ["decide", str(whole)])
    assert done.exit_code == 0, done.output
    assert "QWK, fitted on             same essays   other folds\n  rounding " in done.output
    assert "  quantiles (taken) " in done.output
    assert done.output.endswith(f"{whole / 'decision.json'}: written\n")
    content = json.loads((whole / "decision.json").read_text())
    assert content.keys() == {"fitted_on", "metric", "method", "columns", "kind", "labels", "cuts"}
    oof = pd.read_csv(whole / "oof.csv")
    decided = decide(read_decision(whole), oof[["score"]].to_numpy())
    same = METRICS["qwk"].score(oof[["true_score"]], decided, ["score"]).overall
    first = (whole / "decision.json").read_bytes()
    fitted = decide_run(whole)
    assert (whole / "decision.json").read_bytes() == first
    assert list(fitted.scores) == ["rounding", "quantiles", "search"]
    assert fitted.scores["quantiles"][0] == same
    scores = json.loads((whole / "scores.json").read_text())
    assert scores["score"] == fitted.scores["quantiles"][1]  # the CV is the honest one, and files are scored alike
    assert scores["decision"] == {"method": "quantiles", "score_without": fitted.scores["rounding"][0]}
    assert decision_in_words(scores) == f", decided by quantiles (without it {fitted.scores['rounding'][0]:.4f})"
    assert decision_in_words({"score": 0.5}) == ""
    oof.rename(columns={"score": "raw"}).rename(columns={"true_score": "score"}).to_csv(
        whole / "train.csv", index=False
    )
    assert score_files(whole / "oof.csv", whole / "train.csv").overall == scores["score"]
    plain = float(np.sqrt(((oof["score"] - oof["true_score"]) ** 2).mean()))  # a metric of values takes no decision
    assert score_files(whole / "oof.csv", whole / "train.csv", metric="rmse").overall == pytest.approx(plain)
    assert fitted.scores["quantiles"][1] > fitted.scores["rounding"][1] + 0.02
    assert decide_run(whole, "search").method == "search"
    assert json.loads((whole / "decision.json").read_text())["method"] == "search"


def test_a_decision_of_another_oof_csv_is_refused_with_the_mend(whole):
    decide_run(whole)
    with (whole / "oof.csv").open("a") as file:
        file.write("t200,0,1,1.5\n")
    with pytest.raises(Fb3Error, match=r"^.*decision.json: was fitted on another oof.csv .*; run `fb3 decide .*run`$"):
        read_decision(whole)
    decide_run(whole)
    assert read_decision(whole)


def test_a_method_that_does_not_suit_is_refused(whole):
    with pytest.raises(Fb3Error, match=r"--method argmax: no decision for task.kind=regression; known: none, rounding"):
        decide_run(whole, "argmax")
    with pytest.raises(Fb3Error, match="did you mean 'quantiles'"):
        decide_run(whole, "quantile")


def test_one_fold_is_scored_by_halves(whole):
    table = pd.read_csv(whole / "oof.csv", dtype=str)
    table.assign(fold=0).to_csv(whole / "oof.csv", index=False)
    fitted = decide_run(whole)
    assert "other half" in fitted.text()
    assert fitted.scores["quantiles"][0] != fitted.scores["quantiles"][1]


def test_a_metric_of_values_leaves_predictions_as_they_are(run, tmp_path):
    from tests.conftest import copied

    mine = copied(run, tmp_path / "run")
    assert decide_run(mine).method == "none"
    values = np.array([[1.5, 2.25]], np.float32)
    assert np.array_equal(decide(read_decision(mine), values), values)


@pytest.mark.parametrize(("metric", "method"), [("qwk", "none"), ("rmse", "rounding"), ("qwk", "search")])
def test_a_bundle_decides_as_fb3_decide_said_and_not_as_the_recipe_would(whole, metric, method):
    path = whole / "recipe.yaml"
    path.write_text(path.read_text().replace("metric: qwk", f"metric: {metric}"))
    recipe = load_recipe(path)
    assert (ensemble_decision({whole: recipe}) is None) == (metric == "rmse")
    decide_run(whole, method)
    packed = Decision.from_json(ensemble_decision({whole: recipe}), "decision.json")
    assert packed == read_decision(whole)
    assert packed.kind == (method if method != "search" else "cut_points")


def test_files_are_scored_as_the_run_whatever_the_metric(whole):
    path = whole / "recipe.yaml"
    path.write_text(path.read_text().replace("metric: qwk", "metric: rmse"))
    fitted = decide_run(whole, "quantiles")
    table = pd.read_csv(whole / "oof.csv")[["text_id", "true_score"]].rename(columns={"true_score": "score"})
    table.to_csv(whole / "train.csv", index=False)
    assert score_files(whole / "oof.csv", whole / "train.csv").overall == fitted.scores["quantiles"][1]


def test_runs_of_unlike_decisions_take_the_first_ones_and_say_so(whole, tmp_path, capsys):
    other, recipe = shutil.copytree(whole, tmp_path / "other"), load_recipe(whole / "recipe.yaml")
    decide_run(other, "search")
    assert ensemble_decision({whole: recipe, other: recipe})["method"] == "quantiles"
    assert "the runs have the decisions quantiles, search; quantiles of" in capsys.readouterr().err
    assert ensemble_decision({other: recipe, whole: recipe})["method"] == "search"


def test_a_bundles_cut_points_are_those_of_the_mean_of_its_runs_on_the_essays_of_all(whole, tmp_path):
    other, recipe = shutil.copytree(whole, tmp_path / "other"), load_recipe(whole / "recipe.yaml")
    first = pd.read_csv(whole / "oof.csv", float_precision="round_trip")
    second = first[first["fold"] != 3].sample(frac=1, random_state=0)
    second = second.assign(score=4.0 - 0.5 * second["score"] ** 0.5 + 0.9 * second["true_score"])
    second.to_csv(other / "oof.csv", index=False)
    both = first.merge(second, on="text_id", suffixes=("", "_other"))
    mean, truth = (both["score"] + both["score_other"]) / 2, both["true_score"]
    labels = np.unique(truth)
    wanted = np.quantile(mean, [(truth < label).mean() for label in labels[1:]])
    found = ensemble_decision({whole: recipe, other: recipe})
    assert found["labels"] == (tuple(labels),)
    assert found["cuts"][0] == pytest.approx(wanted, rel=1e-6)
