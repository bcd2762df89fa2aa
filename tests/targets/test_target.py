from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.targets.build import resolve, sorted_classes, target_of
from fb3.targets.decisions import Decision

LABELS = ["data.target_columns=[label]", "data.id_column=id", "task={kind: classification, classes: [low, mid, high]}"]
VALUES = np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]], np.float32)


def target(metric, *more):
    return target_of(load_recipe("tiny", [*LABELS, f"metric={metric}", *more]))


def test_a_row_gets_its_likeliest_class_or_the_probability_of_each_in_the_samples_order():
    labels = target("accuracy")
    assert labels.forms() == [("label",), ("low", "mid", "high")]
    assert labels.render(VALUES, ["label"])["label"].tolist() == ["mid", "high", "low"]
    shares = target("log_loss")
    assert shares.forms()[0] == ("low", "mid", "high")
    found = shares.render(VALUES, ["high", "low", "mid"])
    assert list(found) == ["high", "low", "mid"]
    assert np.array_equal(found.to_numpy(), VALUES[:, [2, 0, 1]])


def test_class_scaling_moves_labels_and_no_probability():
    scaled = target("macro_f1")
    scaled.decision = Decision("class_scaling", factors=(1.0, 1.0, 2.0))
    assert scaled.render(VALUES, ["label"])["label"].tolist() == ["high", "high", "high"]
    assert np.array_equal(scaled.render(VALUES, ["low", "mid", "high"]).to_numpy(), VALUES)


def test_probabilities_are_never_sure_and_other_cells_are_refused():
    sure = target("log_loss").render(np.array([[0.0, 1.0, 0.0]]), ["low", "mid", "high"]).to_numpy()
    assert 0 < sure.min() <= 2e-7
    assert 1 - 2e-7 <= sure.max() < 1
    with pytest.raises(Fb3Error, match=r"1 cells are no class, first Low in row 2 .*b.*, column label"):
        target("accuracy").check_cells(pd.DataFrame({"id": ["a", "b"], "label": ["low", "Low"]}))
    with pytest.raises(Fb3Error, match="have no probability that is a number"):
        target("accuracy").render(np.array([[np.nan, 0.5, 0.5]]), ["label"])


def test_classes_are_sorted_as_numbers_where_all_are_and_stored():
    assert sorted_classes(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert sorted_classes(["10", "9", "a"]) == ["10", "9", "a"]
    recipe = load_recipe("tiny", [*LABELS[:2], "task={kind: classification}", "metric=accuracy"])
    essays = pd.DataFrame({"id": ["x", "y", "z"], "label": ["10", "9", "10"]})
    known = resolve(recipe, essays)
    assert known.task.classes == ("9", "10")
    assert resolve(known, essays) is known
    assert target_of(known).truths(essays).tolist() == [[0, 1], [1, 0], [0, 1]]
    with pytest.raises(Fb3Error, match=r"train.csv: 1 labels are of no known class, first 8 in row 1 .* \['9', '10'\]"):
        target_of(known).check(pd.DataFrame({"id": ["x"], "label": ["8"]}), Path("train.csv"))
