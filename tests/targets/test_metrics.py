import os
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, roc_auc_score, root_mean_squared_error

from fb3.errors import Fb3Error
from fb3.recipe.recipe import Metric as MetricName
from fb3.targets.metrics import METRICS, Score, mcrmse, rmse_columns
from tests.conftest import ROOT

TABLES = arrays(np.float64, (5, 3), elements=st.floats(-10, 10))


@settings(deadline=None)
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


def drawn(seed=0, rows=40):
    """Truths 0 to 5 and noisy predictions of two columns."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 6, (rows, 2)).astype(float)
    return truth, truth + draw.normal(0, 1.5, truth.shape)


OTHERS = {
    "mcrmse": lambda truth, predicted: root_mean_squared_error(truth, predicted),
    "rmse": lambda truth, predicted: root_mean_squared_error(truth.ravel(), predicted.ravel()),
    "mae": mean_absolute_error,
    "pearson": lambda *two: np.mean([stats.pearsonr(a, b)[0] for a, b in zip(*(each.T for each in two), strict=True)]),
    "spearman": lambda *two: np.mean(
        [stats.spearmanr(a, b)[0] for a, b in zip(*(each.T for each in two), strict=True)]
    ),
    "qwk": lambda truth, predicted: np.mean(
        [
            cohen_kappa_score(a.astype(int), np.rint(b).astype(int), labels=range(-9, 15), weights="quadratic")
            for a, b in zip(truth.T, predicted.T, strict=True)
        ]
    ),
    "auc": lambda truth, predicted: roc_auc_score(truth, predicted, average="macro"),
}


def test_every_metric_of_the_recipe_has_a_formula():
    assert set(METRICS) == set(get_args(MetricName)) == set(OTHERS)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_the_libraries_and_knows_its_direction(name):
    truth, predicted = drawn()
    truth = (truth > 2).astype(float) if name == "auc" else truth
    metric = METRICS[name]
    score = metric.score(truth, predicted, ["a", "b"])
    assert score.overall == pytest.approx(OTHERS[name](truth, predicted))
    assert list(score.columns) == ["a", "b"]
    alone = [metric.score(truth[:, [k]], predicted[:, [k]], ["x"]).overall for k in (0, 1)]
    assert list(score.columns.values()) == pytest.approx(alone)
    perfect = metric.score(truth, truth, ["a", "b"])
    assert perfect.better_than(score)
    assert not score.better_than(perfect)
    twice = metric.score(2 * truth, 2 * predicted, ["a", "b"]).overall if name not in {"auc", "qwk"} else None
    assert twice is None or twice == pytest.approx((2 if metric.in_units else 1) * score.overall)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_ranks_decide_spearman_and_auc_alone(seed):
    truth, predicted = drawn(seed)
    for name, of in (("spearman", truth), ("auc", (truth > 2).astype(float))):
        plain, bent = (METRICS[name].score(of, each, ["a", "b"]).overall for each in (predicted, np.exp(predicted)))
        assert plain == pytest.approx(bent)


def test_predictions_that_are_all_alike_correlate_with_nothing():
    truth, predicted = drawn()
    assert METRICS["pearson"].score(truth, predicted * 0 + 3, ["a", "b"]).overall == 0.0
    assert METRICS["qwk"].score(truth, predicted * 0 + 3, ["a", "b"]).overall == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("name", "truth", "words"),
    [
        ("pearson", [[1.0, 2], [2, 2]], "Pearson of column 'b': all truths are alike"),
        ("qwk", [[1.0, 2], [2.5, 3]], "QWK of column 'a': has truths that are no whole numbers"),
        ("qwk", [[1.0, 2], [2, 2]], "QWK of column 'b': all truths are alike"),
        ("auc", [[1.0, 2], [0, 3]], r"AUC of column 'b': wants truths of 0 and 1, and both; it has \[2.0, 3.0\]"),
        ("auc", [[1.0, 1], [0, 1]], "AUC of column 'b'"),
    ],
)
def test_truths_without_a_score_are_named_with_the_mend(name, truth, words):
    with pytest.raises(Fb3Error, match=f"^{words}.*; or set metric=rmse$"):
        METRICS[name].score(np.array(truth), np.array(truth), ["a", "b"])


AES2 = Path(os.environ.get("FB3_AES2", ROOT.parent / "shared" / "data" / "aes2-oof")) / "oof.csv"


@pytest.mark.skipif(not AES2.is_file(), reason="FB3_AES2 names no folder with the out-of-fold predictions of AES 2.0")
def test_rounded_predictions_of_a_real_competition_have_their_known_kappa():
    table = pd.read_csv(AES2)
    mean = table.filter(like="model").mean(axis=1).to_numpy()[:, None]
    score = METRICS["qwk"].score(table[["score"]].to_numpy(float), mean, ["score"])
    assert score.overall == pytest.approx(0.8038, abs=1e-4)
