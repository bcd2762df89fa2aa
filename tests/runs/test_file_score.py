import pandas as pd
import pytest
import sklearn.metrics

from fb3.errors import Fb3Error
from fb3.runs.file_score import score_files
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


def test_subset_is_offered_only_where_it_helps(tmp_path):
    (tmp_path / "t.csv").write_text("id,a\n1,2\n3,4\n")
    (tmp_path / "p.csv").write_text("id,a\n1,2\n")
    with pytest.raises(Fb3Error, match="--subset scores without"):
        score_files(tmp_path / "p.csv", tmp_path / "t.csv")
    (tmp_path / "p.csv").write_text("id,a\n1,2\n9,2\n")
    with pytest.raises(Fb3Error, match=r"(?s)^(?!.*--subset).*\['9'\]"):
        score_files(tmp_path / "p.csv", tmp_path / "t.csv")


def csv_of(path, *rows):
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def test_labels_are_compared_as_they_are_and_probabilities_with_the_column_that_holds_their_classes(tmp_path):
    truth = csv_of(tmp_path / "truth.csv", "id,text,label", "1,x,no", "2,y,yes", "3,z,maybe", "4,w,yes")
    labels = csv_of(tmp_path / "labels.csv", "id,label", "4,no", "3,maybe", "2,yes", "1,no")
    shares = csv_of(
        tmp_path / "shares.csv", "id,yes,no,maybe", "1,0.2,0.6,0.2", "2,0.9,0.05,0.05", "3,0.1,0.1,0.8", "4,0.4,0.3,0.3"
    )
    one, two, three = ["no", "yes", "maybe", "yes"], ["no", "yes", "maybe", "no"], ["maybe", "no", "yes"]
    assert score_files(labels, truth).overall == sklearn.metrics.accuracy_score(one, two) == 0.75
    macro = sklearn.metrics.f1_score(one, two, average="macro", labels=three, zero_division=0)
    assert score_files(labels, truth, metric="macro_f1").overall == pytest.approx(macro)
    values = [[0.2, 0.6, 0.2], [0.05, 0.05, 0.9], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]]  # maybe, no, yes
    loss = sklearn.metrics.log_loss(one, values, labels=three)
    assert score_files(shares, truth).overall == pytest.approx(loss)
    assert score_files(shares, truth, metric="accuracy").overall == 1.0
    with pytest.raises(Fb3Error, match=r"labels\.csv: holds labels, and log loss wants a probability a class"):
        score_files(labels, truth, metric="log_loss")


def test_numbers_are_labels_for_metrics_that_compare_labels(tmp_path):
    truth = csv_of(tmp_path / "truth.csv", "id,score", "1,1", "2,2", "3,2", "4,3")
    found = csv_of(tmp_path / "found.csv", "id,score", "1,1", "2,3", "3,2", "4,3")
    assert score_files(found, truth, metric="accuracy").overall == 0.75
    wanted = sklearn.metrics.cohen_kappa_score([1, 2, 2, 3], [1, 3, 2, 3], weights="quadratic")
    assert score_files(found, truth, metric="qwk").overall == pytest.approx(wanted)
    assert score_files(found, truth).metric == "mcrmse"
