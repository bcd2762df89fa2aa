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
from sklearn import metrics as sklearn
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, roc_auc_score, root_mean_squared_error

from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.metric import FileMetricSettings, MetricName, TwoLevelF1Settings
from fb3.targets.decisions import decision_of
from fb3.targets.metrics import METRICS, Score, mcrmse, metric_of, one_hot, rmse_columns
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
    assert set(METRICS) == set(get_args(MetricName)) == set(OTHERS) | set(OF_CLASSES) | {"mean_column_auc"}


@pytest.mark.parametrize("name", OTHERS)
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


CLASSES = [0, 1, 2, 3]


def average_precision(truth, p, most):
    """MAP@most in plain words: 1 / rank of the one right class, 0 beyond `most`."""
    ranks = [1 + sum(other > row[right] for other in row) for right, row in zip(truth, p, strict=True)]
    return np.mean([1 / rank if rank <= most else 0 for rank in ranks])


# From classes (N,), decided classes (N,) and probabilities (N, 4), by scikit-learn's own names.
OF_CLASSES = {
    "log_loss": lambda t, d, p: sklearn.log_loss(t, p, labels=CLASSES),
    "accuracy": lambda t, d, p: sklearn.accuracy_score(t, d),
    "balanced_accuracy": lambda t, d, p: sklearn.balanced_accuracy_score(t, d),
    "macro_f1": lambda t, d, p: sklearn.f1_score(t, d, labels=CLASSES, average="macro", zero_division=0),
    "micro_f1": lambda t, d, p: sklearn.f1_score(t, d, labels=CLASSES, average="micro", zero_division=0),
    "f1_mean": lambda t, d, p: np.mean([OF_CLASSES[name](t, d, p) for name in ("macro_f1", "micro_f1")]),
    "qwk": lambda t, d, p: cohen_kappa_score(t, d, labels=CLASSES, weights="quadratic"),
    "map_at_k": lambda t, d, p: average_precision(t, p, 3),
    "map_at_5": lambda t, d, p: average_precision(t, p, 5),
    "map_at_10": lambda t, d, p: sklearn.label_ranking_average_precision_score(one_hot(t, 4), p),
    "map_at_25": lambda t, d, p: sklearn.label_ranking_average_precision_score(one_hot(t, 4), p),
}


@pytest.mark.parametrize("name", OF_CLASSES)
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_a_metric_of_classes_is_the_libraries_although_a_class_is_absent(name, seed, among):
    draw = np.random.default_rng(seed)
    truth, p = draw.integers(0, among, 12), draw.dirichlet(np.ones(4), 12)
    p[:, 3] *= 0.01 if among == 2 else 1.0  # class 2 is predicted and never true, class 3 mostly neither
    p /= p.sum(1, keepdims=True)
    truth[:2] = 0, 1
    wanted = OF_CLASSES[name](truth, p.argmax(1), p)
    metric, names = METRICS[name], list("abcd")
    score = metric.score(one_hot(truth, 4), p, names, exclusive=True)
    assert score.overall == pytest.approx(wanted)
    if metric.needs == "decisions":
        assert metric.score(one_hot(truth, 4), one_hot(p.argmax(1), 4), names, exclusive=True) == score
    if name in {"macro_f1", "f1_mean"}:
        each = sklearn.f1_score(truth, p.argmax(1), labels=CLASSES, average=None, zero_division=0)
        assert list(score.columns.values()) == pytest.approx(list(each))
    perfect = metric.score(one_hot(truth, 4), one_hot(truth, 4), names, exclusive=True)
    assert perfect.better_than(score) or perfect == score


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.booleans())
def test_f1_of_two_levels_is_the_mean_of_the_libraries_four(seed, by_name):
    draw, names = np.random.default_rng(seed), ["0100", "0101", "0200", "1203", "1204", "1205"]
    parents = {name: f"level {name[:2]}" for name in names} if by_name else 2
    truth, decided = draw.integers(0, 4, (2, 9))  # the last two classes, and some others, stand nowhere
    levels = [(truth, decided), [[int(names[at][:2]) for at in each] for each in (truth, decided)]]
    wanted = np.mean([sklearn.f1_score(*level, average=each) for level in levels for each in ("micro", "macro")])
    metric = metric_of(TwoLevelF1Settings(kind="two_level_f1", parents=parents))
    score = metric.score(one_hot(truth, 6), one_hot(decided, 6), names, exclusive=True)
    assert score.overall == pytest.approx(wanted)
    assert metric.score(one_hot(truth, 6), one_hot(truth, 6), names, exclusive=True).overall == 1


def test_two_levels_want_classes_that_each_have_a_parent():
    metric = {"kind": "two_level_f1", "parents": {"a": "x", "b": "x"}}
    task = {"kind": "classification", "classes": ["a", "b", "c"]}
    data = {"target_columns": ["label"]}
    with pytest.raises(Fb3Error, match=r"metric.parents: class 'c' has none \(1 such classes\); name each"):
        Recipe.from_mapping({"metric": metric, "task": task, "data": data}, "r")
    with pytest.raises(Fb3Error, match=r"metric=two_level_f1 compares classes, and task.kind=regression has none"):
        Recipe.from_mapping({"metric": metric}, "r")
    with pytest.raises(Fb3Error, match="metric"):
        Recipe.from_mapping({"metric": {"kind": "three_level_f1", "parents": 2}}, "r")
    recipe = Recipe.from_mapping({"metric": metric, "task": task | {"classes": ["a", "b"]}, "data": data}, "r")
    assert decision_of(recipe).kind == "class_scaling"


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_metrics_of_several_labels_are_the_libraries(seed):
    draw = np.random.default_rng(seed)
    truth, p = draw.integers(0, 2, (15, 3)).astype(float), draw.random((15, 3)).astype(np.float32)
    truth[:2], truth[:, 2] = [[0, 0, 0], [1, 1, 0]], 0  # the last label is never true
    decided = p > 0.5

    def each(of):
        return [of(truth[:, k], decided[:, k]) for k in range(3)]

    wanted = {
        "log_loss": np.mean([sklearn.log_loss(truth[:, k], p[:, k], labels=[0, 1]) for k in range(3)]),
        "accuracy": sklearn.accuracy_score(truth, decided),
        "balanced_accuracy": np.mean([np.mean(each(sklearn.balanced_accuracy_score))]),
        "macro_f1": sklearn.f1_score(truth, decided, average="macro", labels=[0, 1, 2], zero_division=0),
        "micro_f1": sklearn.f1_score(truth, decided, average="micro", labels=[0, 1, 2], zero_division=0),
    }
    wanted["f1_mean"] = (wanted["macro_f1"] + wanted["micro_f1"]) / 2
    for name, value in wanted.items():
        assert METRICS[name].score(truth, p, ["a", "b", "c"]).overall == pytest.approx(value), name
    of_two = truth[:, :2], p[:, :2], ["a", "b"]
    for name in ("auc", "mean_column_auc"):
        assert METRICS[name].score(*of_two).overall == pytest.approx(roc_auc_score(*of_two[:2], average="macro"))


def test_auc_of_classes_is_one_against_the_rest():
    draw = np.random.default_rng(0)
    truth, p = draw.integers(0, 3, 30), draw.dirichlet(np.ones(3), 30)
    score = METRICS["auc"].score(one_hot(truth, 3), p, ["a", "b", "c"], exclusive=True)
    assert score.overall == pytest.approx(roc_auc_score(truth, p, multi_class="ovr", labels=[0, 1, 2]))


def test_the_log_loss_takes_shares_and_stays_finite():
    shares, p = np.array([[0.2, 0.8], [0.5, 0.5]]), np.array([[0.3, 0.7], [0.5, 0.5]])
    wanted = -(shares * np.log(p)).sum(1).mean()
    assert METRICS["log_loss"].score(shares, p, ["a", "b"], exclusive=True).overall == pytest.approx(wanted)
    worst = METRICS["log_loss"].score(np.array([[1.0]]), np.array([[0.0]]), ["a"]).overall
    assert worst == pytest.approx(-np.log(1e-7))


def test_average_precision_counts_several_truths():
    truth, p = np.array([[1.0, 0, 1, 0], [0, 0, 0, 0]]), np.array([[0.4, 0.3, 0.2, 0.1]] * 2)
    assert METRICS["map_at_k"].score(truth, p, list("abcd")).overall == pytest.approx((1 + 2 / 3) / 2 / 2)


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
        ("accuracy", [[1.0, 0.5], [0, 1]], "accuracy of column 'b': has truths that are no whole numbers"),
        ("macro_f1", [[1.0, 0.5], [0, 3]], r"macro F1 of column 'b': wants truths of 0 and 1; it has \[0.5, 3.0\]"),
        ("log_loss", [[1.0, 0.5], [0, 3]], "log loss of column 'b': has truths that are no probabilities"),
    ],
)
def test_truths_without_a_score_are_named_with_the_mend(name, truth, words):
    with pytest.raises(Fb3Error, match=f"^{words}.*; or set metric=rmse$"):
        METRICS[name].score(np.array(truth), np.array(truth), ["a", "b"])


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_mend_suits_classes_and_labels(exclusive):
    with pytest.raises(Fb3Error, match=r"^AUC of column 'b': wants truths .*; or set metric=log_loss$"):
        METRICS["auc"].score(np.array([[1.0, 0], [0, 0]]), np.zeros((2, 2)), ["a", "b"], exclusive=exclusive)


def test_a_metric_of_ones_own(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n\nHALF = 0.5\n\n"
        "def half_mae(truth, predicted):\n    return HALF * np.abs(truth - predicted).mean()\n\n"
        "def nothing(truth, predicted):\n    return None\n\ndef breaks(truth, predicted):\n    return [][0]\n"
    )
    truth, predicted = drawn()
    plain = FileMetricSettings(file=str(file), function="half_mae", lower_is_better=True)
    metric = metric_of(plain)
    assert (metric.title, metric.lower_is_better, metric.in_units) == ("half_mae", True, True)
    assert not capsys.readouterr().err, "nothing is loaded before something is scored"
    score = metric.score(truth, predicted, ["a", "b"])
    assert score == Score(pytest.approx(mean_absolute_error(truth, predicted) / 2), {})
    assert metric_of(f"{file}:half_mae").score(truth, predicted, ["a", "b"]).overall == score.overall
    assert capsys.readouterr().err == f"{file}: runs as code, because it holds the metric half_mae\n"
    decided = metric_of(plain.model_copy(update={"needs": "decisions"})).score(truth, predicted, ["a", "b"])
    assert decided.overall == pytest.approx(mean_absolute_error(truth, np.rint(predicted)) / 2)
    (tmp_path / "broken.py").write_text("def f(:")
    for named, words in (
        (f"{file}:nothing", "mine.py:nothing: gives None; let it give one finite number"),
        (f"{file}:breaks", "mine.py:breaks: breaks with IndexError: list index out of range; mend the file"),
        (f"{file}:half", "mine.py: no function 'half' in it; did you mean 'half_mae'?"),
        (f"{tmp_path}/broken.py:f", "broken.py:f: breaks with SyntaxError: .*; mend the file"),
        (f"{tmp_path}/none.py:f", "none.py:f: no such file; a path begins at the working directory"),
    ):
        with pytest.raises(Fb3Error, match=f"^metric .*{words}"):
            metric_of(named).score(truth, predicted, ["a", "b"])


AES2 = Path(os.environ.get("FB3_AES2", ROOT.parent / "shared" / "data" / "aes2-oof")) / "oof.csv"


@pytest.mark.skipif(not AES2.is_file(), reason="FB3_AES2 names no folder with the out-of-fold predictions of AES 2.0")
def test_rounded_predictions_of_a_real_competition_have_their_known_kappa():
    table = pd.read_csv(AES2)
    mean = table.filter(like="model").mean(axis=1).to_numpy()[:, None]
    score = METRICS["qwk"].score(table[["score"]].to_numpy(float), mean, ["score"])
    assert score.overall == pytest.approx(0.8038, abs=1e-4)
