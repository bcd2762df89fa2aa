import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.submission import arrange, check_values

SAMPLE = pd.DataFrame({"text_id": ["x", "y", "z"], "b": 3.0, "a": 3.0})


@given(st.permutations(["x", "y", "z"]))
def test_columns_and_rows_are_the_samples(order):
    value = {"x": 1.0, "y": 2.0, "z": 3.0}
    predicted = pd.DataFrame({"text_id": order, "a": [value[i] for i in order], "b": [value[i] + 1 for i in order]})
    out = arrange(predicted, SAMPLE, "test.csv")
    assert out.values.tolist() == [["x", 2.0, 1.0], ["y", 3.0, 2.0], ["z", 4.0, 3.0]]
    assert list(out.columns) == ["text_id", "b", "a"]


def test_other_columns_are_refused():
    with pytest.raises(Fb3Error, match="target_columns"):
        arrange(SAMPLE.rename(columns={"a": "c"}), SAMPLE, "test.csv")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("a", np.nan, "text_id y, column a"), ("b", 5.5, "5.5 at text_id y"), ("text_id", "x", r"duplicate ids: \['x'\]")],
)
def test_a_bad_submission_is_refused(column, value, words):
    bad = SAMPLE.copy()
    bad.loc[1, column] = value
    with pytest.raises(Fb3Error, match=words):
        check_values(bad, 1, 5)


def test_bounds_that_float32_rounds_are_met_by_clipped_values():
    clipped = SAMPLE.assign(a=np.float32(0.3), b=np.float32(0.3))
    check_values(clipped, 0.0, 0.3)


def test_an_empty_submission_is_refused():
    with pytest.raises(Fb3Error, match="no row"):
        check_values(SAMPLE.iloc[:0], 1, 5)
