import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import root_mean_squared_error

from fb3.targets.metrics import Score, mcrmse, rmse_columns

TABLES = arrays(np.float64, (5, 3), elements=st.floats(-10, 10))


@given(TABLES, TABLES)
def test_mcrmse_is_sklearns(truth, predicted):
    each = root_mean_squared_error(truth, predicted, multioutput="raw_values")
    assert rmse_columns(truth, predicted) == pytest.approx(each)
    assert mcrmse(truth, predicted) == pytest.approx(each.mean())


def test_mcrmse_is_the_mean_of_roots_not_the_root_of_means():
    assert mcrmse(np.zeros((2, 2)), np.array([[3.0, 0], [3.0, 0]])) == pytest.approx(1.5)


@pytest.mark.parametrize("shape", [(3, 2), (2,), (0, 2)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match="want the same"):
        mcrmse(np.zeros((2, 2)) if shape != (0, 2) else np.zeros(shape), np.zeros(shape))


def test_a_better_score_and_never_a_nan():
    low, high, nan = Score(0.4, {}), Score(0.5, {}), Score(float("nan"), {})
    assert low.better_than(high)
    assert not high.better_than(low)
    assert low.better_than(None)
    assert not nan.better_than(None)
    assert not nan.better_than(low)
    assert Score(0.5, {}, lower_is_better=False).better_than(Score(0.4, {}, lower_is_better=False))
