"""Which labels are kept, and hard ones."""

import numpy as np
import pytest

from fb3.errors import Fb3Error
from fb3.pseudo_labels.label_filters import agreeing, check_filters, confident, hardened
from fb3.recipe import load_recipe

CLASSES = ["task={kind: classification, classes: [a, b, c]}", "data.target_columns=[label]", "metric=log_loss"]
LABELS = ["task={kind: multilabel}", "data.target_columns=[x, y]", "metric=log_loss"]


def test_the_share_is_kept_on_which_models_differ_least():
    middle = np.array([[3.0, 3.0], [2.0, 4.0], [1.0, 5.0], [4.0, 4.0]])
    apart = np.array([[0.1, 0.1], [0.4, 0.0], [0.5, 0.5], [0.0, 0.1]])
    assert agreeing(np.stack([middle + apart, middle - apart]), 0.5).tolist() == [True, False, False, True]
    assert agreeing(np.stack([middle, middle + 1]), 0.01).sum() == 1


def test_confidence_reads_the_likeliest_class_and_the_least_sure_label():
    labels = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    assert confident(labels, 0.6, exclusive=True).tolist() == [True, False]
    assert confident(np.array([[0.9, 0.1], [0.9, 0.5]]), 0.8, exclusive=False).tolist() == [True, False]


@pytest.mark.parametrize(
    ("lines", "soft", "hard"),
    [
        (CLASSES, [[0.2, 0.5, 0.3]], [[0, 1, 0]]),
        (LABELS, [[0.49, 0.51]], [[0, 1]]),
        (["task={kind: binned}", "data.target_columns=[x, y]"], [[2.74, 4.9]], [[2.5, 5.0]]),
        (["decision.kind=rounding", "data.target_columns=[x, y]"], [[2.6, 4.4]], [[3, 4]]),
    ],
)
def test_hard_labels_are_what_a_truth_could_be(lines, soft, hard):
    recipe = load_recipe("tiny", lines)
    check_filters(recipe, 1, hard=True, agreement=None, confidence=None)
    np.testing.assert_array_equal(hardened(np.array(soft), recipe), hard)


@pytest.mark.parametrize(
    ("lines", "given", "words"),
    [
        ([], {"hard": True}, "has no steps"),
        ([], {"confidence": 0.9}, "predicts numbers, not probabilities"),
        (CLASSES, {"agreement": 0.5}, "wants two models"),
        (CLASSES, {"confidence": 1.5}, "want a share between 0 and 1"),
    ],
)
def test_filters_that_cannot_be_are_refused(lines, given, words):
    options = {"hard": False, "agreement": None, "confidence": None, **given}
    with pytest.raises(Fb3Error, match=words):
        check_filters(load_recipe("tiny", lines), 1, **options)
