import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings
from fb3.recipe.task import RegressionSettings
from fb3.submission.form import SubmissionForm, submitted_columns
from fb3.submission.submission_file import SubmissionFile, _sample_cells, check_frame
from fb3.targets.build import target_of
from fb3.targets.target import Scores


def target(*columns, **more):
    return Scores(DataSettings(target_columns=columns), RegressionSettings(**more))


TARGET = target("b", "a")
SAMPLE = pd.DataFrame({"text_id": ["x", "y", "z"], "b": 3.0, "a": 3.0})


@given(st.lists(st.sampled_from(["x", "y", "z"]), unique=True))
def test_predictions_replace_the_means_by_id(tmp_path_factory, known):
    out = tmp_path_factory.mktemp("s") / "s.csv"
    submission = SubmissionFile(SAMPLE["text_id"], [2.5, 7.0], TARGET, ["b", "a"], out)
    assert pd.read_csv(out).values.tolist() == [[i, 2.5, 5.0] for i in "xyz"]
    value = {"x": 1.0, "y": 2.0, "z": 9.0}
    submission.update(np.array(known, object), np.array([[value[i], 0.0] for i in known]).reshape(-1, 2))
    want = [[i, min(value[i], 5.0), 1.0] if i in known else [i, 2.5, 5.0] for i in "xyz"]
    assert pd.read_csv(out).values.tolist() == want


def test_a_value_that_is_none_leaves_the_file_as_it_was(tmp_path):
    submission = SubmissionFile(SAMPLE["text_id"], [3.0, 3.0], TARGET, ["b", "a"], tmp_path / "s.csv")
    before = (tmp_path / "s.csv").read_text()
    with pytest.raises(Fb3Error, match="text_id x, column a"):
        submission.update(np.array(["x"], object), np.array([[2.0, np.nan]]))
    assert (tmp_path / "s.csv").read_text() == before
    submission.update(np.array(["y"], object), np.array([[2.0, 2.0]]))
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "x,3.0,3.0"


def test_other_columns_are_refused():
    with pytest.raises(Fb3Error, match="target_columns"):
        submitted_columns(SAMPLE, target("b", "c"), "sample.csv")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("a", np.nan, "text_id y, column a"), ("b", 5.5, "5.5 at text_id y"), ("text_id", "x", r"duplicate ids: \['x'\]")],
)
def test_a_bad_submission_is_refused(column, value, words):
    bad = SAMPLE.copy()
    bad.loc[1, column] = value
    with pytest.raises(Fb3Error, match=words):
        check_frame(bad, TARGET)


def test_bounds_that_float32_rounds_are_met_by_clipped_values():
    clipped = SAMPLE.assign(a=np.float32(0.3), b=np.float32(0.3))
    check_frame(clipped, target("b", "a", minimum=0.0, maximum=0.3))


def test_an_empty_submission_is_refused():
    with pytest.raises(Fb3Error, match="no row"):
        check_frame(SAMPLE.iloc[:0], TARGET)


def test_a_sample_with_other_classes_is_refused_with_the_key_that_names_classes():
    recipe = load_recipe(
        "tiny", ["task.kind=classification", "metric=auc", "data.target_columns=[y]", "task.classes=[a, b]"]
    )
    sample = pd.DataFrame(columns=["text_id", "a", "b", "c"])
    with pytest.raises(Fb3Error, match=r"set task.classes to the sample's"):
        submitted_columns(sample, target_of(recipe), "sample.csv")


def test_means_without_a_recipe_are_whole_numbers_where_the_samples_cells_are():
    ids = pd.Series(["x", "y"], name="id")
    for cells, wanted in ((["3", "-1"], [3, 3]), (["3", "1.5"], [np.float32(2.6)] * 2)):
        table = pd.DataFrame({"id": ids, "score": cells}, dtype=object)
        form = SubmissionForm(ids=ids, columns=["score"], cells=table)
        assert _sample_cells(form, np.array([2.6]))["score"].tolist() == wanted
