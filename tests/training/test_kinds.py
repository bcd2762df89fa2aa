"""Labels, and scores on other scales, from train.csv to submission.csv."""

import json

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.decide import decide_run
from fb3.submission.inference import infer
from fb3.system.files import read_json
from fb3.targets.build import resolve
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import TINY

SMALL = [*TINY, "train.epochs=2", "train.batch_size=4", "data.max_length=64"]
COLUMNS = list(load_recipe("tiny").data.target_columns)
SINGLE = ["task.kind=classification", "data.target_columns=[label]", "metric=macro_f1"]


def copied_data(competition, to, change):
    """The synthetic competition's files with its 24 first essays, changed."""
    to.mkdir()
    table = pd.read_csv(competition / "train.csv", dtype={"text_id": str}).iloc[:24].copy()
    change(table)
    table.to_csv(to / "train.csv", index=False)
    test = pd.read_csv(competition / "test.csv", dtype=str)
    test.to_csv(to / "test.csv", index=False)
    cells = table[["label"] if "label" in table else COLUMNS].iloc[: len(test)]
    pd.concat([test[["text_id"]], cells], axis=1).to_csv(to / "sample_submission.csv", index=False)
    return to


def labelled(labels):
    def change(table):
        table["label"] = [labels[int(score > 3.2)] for score in table["syntax"]]

    return change


def events(run, kind):
    lines = (run.path / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_one_recipe_trains_alike_on_any_scale(competition, tmp_path):
    """Scores times 100 give predictions times 100; without standardise they would not be learned at all."""
    runs = []
    for factor in (1, 100):

        def scaled(table, factor=factor):
            table[COLUMNS] *= factor

        data = copied_data(competition, tmp_path / f"data{factor}", scaled)
        settings = ["task.standardise=true", f"task.minimum={factor}", f"task.maximum={5 * factor}", "task.loss=huber"]
        runs.append(train(load_recipe("tiny", [*SMALL, *settings]), data, tmp_path / f"run{factor}", folds=[0]))
    small, large = (pd.read_csv(run.path / "oof.csv")[COLUMNS] for run in runs)
    np.testing.assert_allclose(large, 100 * small, rtol=1e-4)
    assert small.std().min() > 1e-3
    losses = [[event["loss"] for event in events(run, "step")] for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    task = load_recipe(runs[1].path / "recipe.yaml").task
    truths = pd.read_csv(tmp_path / "data100" / "train.csv")[COLUMNS]
    np.testing.assert_allclose(task.location, truths.mean(), rtol=1e-5)
    np.testing.assert_allclose(task.scale, truths.std(ddof=0), rtol=1e-5)
    with pytest.raises(Fb3Error, match=r"go from 150.0 to 450.0: .*task.minimum=150 task.maximum=450"):
        train(load_recipe("tiny", SMALL), tmp_path / "data100", tmp_path / "other")


def test_an_open_range_is_packed_and_predicts(competition, tmp_path):
    def around_zero(table):
        table[COLUMNS] = (table[COLUMNS] - 3) * 1000

    data = copied_data(competition, tmp_path / "data", around_zero)
    settings = ["task.standardise=true", "task.minimum=null", "task.maximum=null", "metric=rmse"]
    run = train(load_recipe("tiny", [*SMALL, *settings]), data, tmp_path / "run")
    assert verify(run.path).passed
    assert load_recipe(run.path / "recipe.yaml").task.minimum is None
    bundle = write_bundle([run.path], tmp_path / "bundle", check=replay(data)).path
    infer(bundle, data, tmp_path / "submission.csv")
    predicted = pd.read_csv(tmp_path / "submission.csv")[COLUMNS]
    means = pd.read_csv(data / "train.csv")[COLUMNS].mean()
    assert (np.abs(predicted.mean() - means) < 500).all()
    assert predicted.to_numpy().min() < 1, "not clipped"


def test_a_column_without_spread_has_no_units(competition, tmp_path):
    data = copied_data(competition, tmp_path / "data", lambda table: table.__setitem__("syntax", 3))
    with pytest.raises(Fb3Error, match="column syntax holds the same score in every row"):
        train(load_recipe("tiny", [*SMALL, "task.standardise=true"]), data, tmp_path / "run")


@pytest.mark.parametrize("labels", [("yes", "no, never"), ("10", "9")])
def test_labels_train_pack_and_predict(labels, competition, tmp_path):
    """With everything that reads probabilities: UDA, R-Drop, augmentation, a moving average and a soup."""
    data = copied_data(competition, tmp_path / "data", labelled(labels))
    more = [
        f"task.uda={{file: {competition / 'test.csv'}, batch_size: 4, augment: {{mask: 0.3}}}}",
        "task.r_drop={}",
        "task.class_weights={kind: balanced}",
        "model.dropout=0.1",
        "data.augment.mix=0.3",
        "train.soup={}",
        "tricks=[{kind: ema, decay: 0.5}]",
    ]
    run = train(load_recipe("tiny", [*SMALL, *SINGLE, *more]), data, tmp_path / "run")
    classes = sorted(labels, key=lambda label: (len(label), label))
    assert list(load_recipe(run.path / "recipe.yaml").task.classes) == (
        classes if labels[0].isdecimal() else sorted(labels)
    )
    oof = pd.read_csv(run.path / "oof.csv")
    assert np.allclose(oof[list(labels)].sum(axis=1), 1, atol=1e-5)
    assert oof[list(labels)].to_numpy().min() > 0
    assert all({"uda", "r_drop"} <= event["terms"].keys() for event in events(run, "step"))
    assert verify(run.path).passed
    decide_run(run.path, "argmax")  # the recipe would scale the classes
    bundle = write_bundle([run.path], tmp_path / "bundle", check=replay(data)).path
    assert verify(bundle).passed, verify(bundle).text()
    infer(bundle, data, tmp_path / "submission.csv")
    assert set(pd.read_csv(tmp_path / "submission.csv", dtype=str)["label"]) <= set(labels)


def test_a_label_that_only_validation_has_is_named(competition, tmp_path, capsys):
    def change(table):
        labelled(("low", "high"))(table)
        table.loc[3, "label"] = "only here"
        table["fold"] = [0] * 4 + [1] * 20

    data = copied_data(competition, tmp_path / "data", change)
    recipe = load_recipe("tiny", [*SMALL, *SINGLE, "optimizer.encoder_rate=1e-9", "optimizer.head_rate=1e-9"])
    run = train(recipe, data, tmp_path / "run")
    said = capsys.readouterr().err
    assert (
        said.count("fold 0 validates 1 labels that no essay of its training has, and cannot learn them: 'only h") == 1
    )
    assert [event["labels"] for event in events(run, "warning") if "labels" in event] == [["only here"]]
    assert "it has learned the labels' shares or collapsed" in said


def test_train_csv_decides_which_labels_can_be_learned(competition, tmp_path):
    recipe = load_recipe("tiny", [*SMALL, *SINGLE])
    data = copied_data(competition, tmp_path / "data", labelled(("fold", "b")))
    with pytest.raises(Fb3Error, match=r"'fold' is the name of another column .* rename this label"):
        train(recipe, data, tmp_path / "run")
    data = copied_data(competition, tmp_path / "other", labelled(("a", "b")))
    with pytest.raises(Fb3Error, match=r"labels are of no known class, first a in row .* name all classes in task.cl"):
        train(load_recipe("tiny", [*SMALL, *SINGLE, "task.classes=[b, c]"]), data, tmp_path / "run")


def test_many_labels_are_asked_about_and_too_many_refused(capsys):
    recipe = load_recipe("tiny", SINGLE)
    labels = pd.DataFrame({"label": [f"{number / 7:.4f}" for number in range(1200)]})
    assert len(resolve(recipe, labels).task.classes) == 1200
    assert "holds 1,200 different labels in 1,200 rows; is it a column of numbers? Then" in capsys.readouterr().err
    with pytest.raises(Fb3Error, match="at most 5,000 classes can be told apart; is it"):
        resolve(recipe, pd.concat([labels, labels + "x", labels + "y", labels + "z", labels + "w"]))
    with pytest.raises(Fb3Error, match=r"holds the label '0\.0000' alone"):
        resolve(recipe, labels[:1])


def test_a_small_error_counts_as_half_the_median(competition, tmp_path):
    """CommonLit's data has one excerpt whose error is 0."""

    def change(table):
        table["error"] = np.where(table.index == 0, 0.0, np.where(table.index % 2, 0.5, 1.0))
        table["weight"] = np.where(table.index == 0, 16.0, np.where(table.index % 2, 4.0, 1.0))

    data = copied_data(competition, tmp_path / "data", change)
    own = ["data.weight_column=error", "data.weight_form=standard_error"]
    runs = [train(load_recipe("tiny", [*SMALL, *own]), data, tmp_path / "errors", folds=[0])]
    runs.append(
        train(load_recipe("tiny", [*SMALL, "data.weight_column=weight"]), data, tmp_path / "weights", folds=[0])
    )
    plain = train(load_recipe("tiny", SMALL), data, tmp_path / "plain", folds=[0])
    by_error, by_weight, alike = (pd.read_csv(run.path / "oof.csv")[COLUMNS] for run in (*runs, plain))
    np.testing.assert_allclose(by_error, by_weight, rtol=1e-5)
    assert np.abs(by_error - alike).to_numpy().max() > 1e-4
    assert read_json(runs[0].path / "scores.json")["complete"] is False


@pytest.mark.parametrize(
    ("cell", "words"),
    [("-1", "1 weights are below 0, first -1 in row 3"), ("", "hold no number"), ("inf", "hold no number")],
)
def test_weights_that_are_none_are_refused_by_row(cell, words, competition, tmp_path):
    def change(table):
        table["importance"] = "1"
        table.loc[2, "importance"] = cell

    data = copied_data(competition, tmp_path / "data", change)
    with pytest.raises(Fb3Error, match=f"{words}.*data.weight_column names the weights"):
        train(load_recipe("tiny", [*SMALL, "data.weight_column=importance"]), data, tmp_path / "run")


def test_a_decision_that_cannot_be_fitted_is_refused_before_training(competition, tmp_path):
    data = copied_data(competition, tmp_path / "data", labelled(("low", "high")))
    wrong = {
        "decision: column 'cohesion' has truths that are no whole": ["decision={kind: cut_points}"],
        "class_scaling is tuned by a metric of decisions": [
            *SINGLE[:2],
            "metric=log_loss",
            "decision={kind: class_scaling}",
        ],
    }
    for words, settings in wrong.items():
        with pytest.raises(Fb3Error, match=words):
            train(load_recipe("tiny", [*SMALL, *settings]), data, tmp_path / "run")
        assert not (tmp_path / "run" / "fold0").exists()
