import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.prediction.predictions import Predictions, average


def member(ids, values, name="m", columns=("a",)):
    return Predictions(np.array(ids, object), np.array(values, np.float32), columns, name)


@given(st.permutations(["x", "y", "z"]))
def test_members_are_aligned_by_id_whatever_their_order(order):
    one = member(["x", "y", "z"], [[1.0], [2.0], [3.0]])
    value = {"x": 3.0, "y": 4.0, "z": 5.0}
    other = member(order, [[value[i]] for i in order])
    mean = average([one, other])
    assert mean.ids.tolist() == ["x", "y", "z"]
    assert mean.values.tolist() == [[2.0], [3.0], [4.0]]


def test_weights():
    one, two = member(["x"], [[1.0]]), member(["x"], [[5.0]])
    assert average([one, two], [3, 1]).values.tolist() == [[2.0]]
    for weights in ([1], [[1], [1]], [0, 0], [-1, 2], [np.nan, 1]):
        with pytest.raises(Fb3Error, match="want as many weights"):
            average([one, two], weights)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            member(["x", "w"], [[1.0], [1.0]], "other"),
            r"other and m hold .*: 1 only in other \['w'\], 1 only in m \['y'\]",
        ),
        (member(["x"], [[1.0]], "other"), r"0 only in other \[\], 1 only in m \['y'\]"),
        (member(["x", "y", "y"], [[1.0]] * 3, "other"), r"other: 1 duplicate ids: \['y'\]"),
        (member(["x", "y"], [[1.0], [1.0]], "other", ("b",)), "other predicts"),
    ],
)
def test_a_mismatch_is_refused(other, words):
    with pytest.raises(Fb3Error, match=words):
        average([member(["x", "y"], [[1.0], [2.0]]), other])


def test_nothing_to_average():
    with pytest.raises(Fb3Error, match="nothing"):
        average([])
