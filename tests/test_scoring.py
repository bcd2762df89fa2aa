import pandas as pd
import pytest

from fb3.errors import Fb3Error
from fb3.scoring import score_files


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
        ([["x", 1, 2]], r"1 only in .*truth.csv \['y'\]; --subset"),
        ([["x", 1, 2], ["y", 1, 2], ["z", 1, 2]], r"1 ids only in .*p.csv \['z'\]"),
        ([["x", 1, 2], ["x", 1, 2]], "duplicate ids"),
        ([["x", 1, "high"], ["y", 1, 2]], "'high' is no number, text_id x, column b"),
        ([["x", 1, None], ["y", 1, 2]], "'' is no number"),
    ],
)
def test_bad_files(tmp_path, truth, rows, words):
    with pytest.raises(Fb3Error, match=words):
        score_files(write(tmp_path / "p.csv", rows), truth)


def test_a_missing_column_and_a_bad_truth(tmp_path, truth):
    with pytest.raises(Fb3Error, match=r"no column \['b'\]"):
        score_files(write(tmp_path / "p.csv", [["x", 1], ["y", 1]], ("text_id", "a")), truth)
    with pytest.raises(Fb3Error, match="no column of scores"):
        score_files(truth, write(tmp_path / "t.csv", [["x", "?"], ["y", "?"]], ("text_id", "a")))


def test_a_subset(tmp_path, truth):
    assert score_files(write(tmp_path / "p.csv", [["x", 1, 2]]), truth, subset=True).overall == 0


def test_the_cv_of_a_run_from_its_files(run, competition):
    import json

    score = score_files(run / "oof.csv", competition / "train.csv")
    assert score.overall == pytest.approx(json.loads((run / "scores.json").read_text())["score"], abs=1e-6)
