import json
import shutil

import pandas as pd
import pytest

from fb3.errors import Fb3Error
from fb3.recipe import builtin_names, load_recipe
from fb3.runs.scores import caveats, named_score, score_files
from tests.conftest import copied


def write(path, rows, columns=("text_id", "a", "b")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


@pytest.fixture
def truth(tmp_path):
    rows = [["x", "a text", 1, 2], ["y", "4 texts", 3, 4]]
    return write(tmp_path / "truth.csv", rows, ("text_id", "full_text", "a", "b"))


def test_scores_are_matched_by_id(tmp_path, truth):
    score = score_files(write(tmp_path / "p.csv", [["y", 3, 4], ["x", 1, 4]]), truth)
    assert score.columns == {"a": 0, "b": pytest.approx(2**0.5)}
    assert score.overall == pytest.approx(2**0.5 / 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["x", 1, 2]], r"1 only in .*truth.csv \['y'\], 0 only in .*p.csv \[\]; --subset"),
        ([["x", 1, 2], ["y", 1, 2], ["z", 1, 2]], r"0 only in .*truth.csv \[\], 1 only in .*p.csv \['z'\]"),
        ([["x", 1, 2], ["x", 1, 2]], "duplicate ids"),
        ([["x", 1, "high"], ["y", 1, 2]], r"1 cells hold no number, first 'high' in row 1 \(text_id x\), column b"),
        ([["x", 1, None], ["y", 1, 2]], "1 cells hold no number, first ''"),
    ],
)
def test_bad_files(tmp_path, truth, rows, words):
    with pytest.raises(Fb3Error, match=words):
        score_files(write(tmp_path / "p.csv", rows), truth)


def test_nothing_to_score(tmp_path, truth):
    with pytest.raises(Fb3Error, match="no column of scores in it that is predicted"):
        score_files(truth, write(tmp_path / "t.csv", [["x", "?"], ["y", "?"]], ("text_id", "a")))


@pytest.fixture
def wide(tmp_path):
    """A train.csv with numeric columns that are no targets."""
    rows = [[0, "x", "a text", 1, 2, 0.4, 9], [1, "y", "b text", 3, 4, 0.5, 10]]
    return write(tmp_path / "train.csv", rows, ("", "text_id", "full_text", "a", "b", "standard_error", "grade"))


def test_the_targets_are_those_that_an_oof_file_holds_the_truths_of(tmp_path, wide):
    columns = ("text_id", "fold", "true_a", "true_b", "a", "b", "grade")
    oof = write(tmp_path / "oof.csv", [["x", 0, 1, 2, 1, 2, 0], ["y", 1, 3, 4, 3, 6, 0]], columns)
    score = score_files(oof, wide)
    assert score.columns == {"a": 0, "b": pytest.approx(2**0.5)}
    assert score.left_out == ["", "standard_error", "grade"]
    pd.read_csv(oof).drop(columns="b").to_csv(oof, index=False)
    with pytest.raises(Fb3Error, match=r"oof.csv: no column \['b'\], a target by .*oof.csv"):
        score_files(oof, wide)


def test_the_targets_of_other_predictions_are_the_samples_or_what_both_files_share(tmp_path, wide):
    both = write(tmp_path / "p.csv", [["x", 1, 2, 7], ["y", 3, 4, 7]], ("text_id", "a", "b", "mean"))
    one = write(tmp_path / "one.csv", [["x", 1, 2], ["y", 3, 4]], ("text_id", "a", "mean"))
    assert score_files(both, wide).columns == {"a": 0, "b": 0}
    assert score_files(one, wide).columns == {"a": 0}
    assert score_files(one, wide).left_out == ["", "b", "standard_error", "grade"]
    sample = write(tmp_path / "sample_submission.csv", [["z", 0, 0]])
    assert score_files(both, wide).columns == {"a": 0, "b": 0}
    with pytest.raises(Fb3Error, match=r"one.csv: no column \['b'\], a target by .*sample_submission.csv"):
        score_files(one, wide)
    write(sample, [["z", 0, 0]], ("text_id", "low", "high"))  # a form that train.csv does not have
    assert score_files(one, wide).columns == {"a": 0}


def test_a_subset(tmp_path, truth):
    assert score_files(write(tmp_path / "p.csv", [["x", 1, 2]]), truth, subset=True).overall == 0


def test_the_cv_of_a_run_from_its_files(run, competition):
    score = score_files(run / "oof.csv", competition / "train.csv")
    assert score.overall == pytest.approx(json.loads((run / "scores.json").read_text())["score"], abs=1e-6)


def test_the_readmes_line_where_train_csv_has_further_numbers(run, competition, tmp_path):
    """The recipe beside oof.csv names the targets, so that one that is gone is seen though its truths are gone too."""
    table = pd.read_csv(competition / "train.csv", dtype=str)
    table.assign(standard_error="0.5", grade="9", index=range(len(table))).to_csv(tmp_path / "train.csv", index=False)
    plain, wide = (score_files(run / "oof.csv", each / "train.csv") for each in (competition, tmp_path))
    assert (plain.overall, plain.columns) == (wide.overall, wide.columns)
    assert list(plain.columns) == ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]
    assert (plain.left_out, wide.left_out) == ([], ["standard_error", "grade", "index"])
    assert plain.caveats == []
    damaged = copied(run, tmp_path / "run")
    oof = pd.read_csv(damaged / "oof.csv", dtype=str).drop(columns=["syntax", "true_syntax"])
    oof.to_csv(damaged / "oof.csv", index=False)
    with pytest.raises(Fb3Error, match=r"oof.csv: no column \['syntax'\], a target by .*recipe.yaml"):
        score_files(damaged / "oof.csv", tmp_path / "train.csv")


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
    for name in builtin_names():
        recipe = load_recipe(name)
        assert not recipe.is_debug()
        assert recipe.debug().is_debug()
        assert load_recipe(
            name, ["data.sample=100", "folds.count=2", "train.epochs=2", "folds.holdout=null"]
        ).is_debug()
    assert not load_recipe("tiny", ["data.sample=100", "folds.count=2", "train.epochs=3"]).is_debug()


def test_subset_is_offered_only_where_it_helps(tmp_path):
    (tmp_path / "t.csv").write_text("id,a\n1,2\n3,4\n")
    (tmp_path / "p.csv").write_text("id,a\n1,2\n")
    with pytest.raises(Fb3Error, match="--subset scores without"):
        score_files(tmp_path / "p.csv", tmp_path / "t.csv")
    (tmp_path / "p.csv").write_text("id,a\n1,2\n9,2\n")
    with pytest.raises(Fb3Error, match=r"(?s)^(?!.*--subset).*\['9'\]"):
        score_files(tmp_path / "p.csv", tmp_path / "t.csv")
