"""`fb3 ensemble` on files: ids, folds, truths, what is written, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fb3.cli import app
from fb3.ensembles.ensemble import weigh
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.decide import decide_run
from fb3.runs.file_score import score_files
from fb3.runs.scores import read_scores
from fb3.system.files import sha256

COLUMNS = ["cohesion", "syntax"]


@pytest.fixture
def files(tmp_path):
    """Three CSVs of 120 essays, each in an order of its own, train.csv, and the recipe of their competition."""
    draw = np.random.default_rng(0)
    ids = [f"t{number:03}" for number in range(120)]
    truth = pd.DataFrame(np.clip(np.rint(draw.normal(3, 0.8, (120, 2)) * 2) / 2, 1, 5), columns=COLUMNS)
    truth.insert(0, "text_id", ids)
    for name, noise in (("good", 0.4), ("fair", 0.6), ("random", 2.0)):
        values = 3 + (truth[COLUMNS] - 3 + draw.normal(0, noise, (120, 2))) * (0.64 / (0.64 + noise**2))
        if name == "random":
            values[:] = draw.normal(3, 0.7, (120, 2))
        values.insert(0, "text_id", ids)
        values.sample(frac=1, random_state=len(name)).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "data").mkdir()
    truth.assign(full_text="Some words.").to_csv(tmp_path / "data" / "train.csv", index=False)
    recipe = load_recipe("tiny", [f"data.target_columns={COLUMNS}"])
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    return tmp_path


def weighed(files, *names, out="E", **options):
    given = {"data": files / "data", "recipe": files / "mine.yaml"} | options
    return weigh([files / f"{name}.csv" for name in names], files / out, **given)


def test_the_folder_holds_weights_honest_blends_and_their_scores(files):
    members = [str(files / f"{name}.csv") for name in ("good", "fair", "random")]
    options = ["--data", str(files / "data"), "--recipe", str(files / "mine.yaml"), "--out", str(files / "E")]
    done = CliRunner().invoke(app, ["ensemble", *members, *options])
    assert done.exit_code == 0, done.output
    assert "better than equal" in done.output
    assert "dropped, with what each would add: random (-" in done.output
    content = json.loads((files / "E" / "ensemble.json").read_text())
    assert [member["path"] for member in content["members"]] == members
    assert [member["sha256"] for member in content["members"]] == [sha256(files / name) for name in members]
    weights = pd.DataFrame([member["weights"] for member in content["members"]])
    np.testing.assert_allclose(weights.sum(), 1)
    assert (weights.iloc[2] == 0).all()
    assert content["method"] == "shrunk"
    assert content["folds"] == "a split of the essays"
    taken = next(
        each for each in content["methods"] if (each["method"], each["honest"]) == ("shrunk", content["honest"])
    )
    assert taken["better_than_equal"] > taken["standard_error"] > 0
    scores = read_scores(files / "E" / "scores.json")
    assert scores["score"] == pytest.approx(content["honest"], abs=1e-9)
    assert scores["complete"]
    scored = score_files(files / "E" / "oof.csv", files / "data" / "train.csv")
    assert scored.overall == pytest.approx(content["honest"], abs=1e-9)
    assert scored.caveats == []
    assert sorted(path.name for path in (files / "E").iterdir()) == [
        *("ensemble.json", "folds.csv", "oof.csv", "recipe.yaml", "scores.json")
    ]


def test_a_line_is_kept_where_it_is_honestly_better_and_then_in_the_blend(files):
    for name in ("good", "fair"):
        table = pd.read_csv(files / f"{name}.csv")
        table[COLUMNS] = 2 + (table[COLUMNS] - 3) / 2
        table.to_csv(files / f"{name}.csv", index=False)
    found = weighed(files, "good", "fair", out="F")
    assert ", calibrated (taken)" in found.text()
    content = json.loads((files / "F" / "ensemble.json").read_text())
    assert min(content["calibration"]["slope"].values()) > 1.5
    assert content["methods"][-1]["calibrated"]
    assert read_scores(files / "F" / "scores.json")["score"] == pytest.approx(content["honest"], abs=1e-6)


def test_rows_in_another_order_give_the_same_ensemble(files):
    first = weighed(files, "good", "fair", "random")
    for name in ("good", "fair", "random", "data/train"):
        table = pd.read_csv(files / f"{name}.csv", dtype=str)
        table.sample(frac=1, random_state=5).to_csv(files / f"{name}.csv", index=False)
    second = weighed(files, "good", "fair", "random", out="F")
    np.testing.assert_array_equal(first.chosen.weights, second.chosen.weights)
    assert (files / "E" / "oof.csv").read_bytes() == (files / "F" / "oof.csv").read_bytes()


def test_a_run_a_csv_and_an_ensemble_are_members_alike(run, competition, tmp_path):
    oof = pd.read_csv(run / "oof.csv", dtype={"text_id": str})
    columns = [column for column in oof.columns if f"true_{column}" in oof.columns]
    other = oof[["text_id", *columns]].copy()
    other[columns] = 0.7 * oof[[f"true_{column}" for column in columns]].to_numpy() + 0.9
    other.to_csv(tmp_path / "other.csv", index=False)
    found = weigh([run, tmp_path / "other.csv"], tmp_path / "E")
    assert found.names() == ["tiny", "other"]
    assert found.chosen.weights[:, 1].min() > 0.5
    with_folds = other.assign(fold=oof["fold"])
    with_folds.to_csv(tmp_path / "folds.csv", index=False)
    shared = weigh([run / "oof.csv", tmp_path / "folds.csv"], tmp_path / "F", data=competition)
    assert shared.members.own_folds
    member = json.loads((tmp_path / "F" / "ensemble.json").read_text())["members"][1]
    assert list(member["weights_without_fold"]) == ["0", "1"]
    assert list(member["weights_without_fold"]["0"]) == columns
    assert "other folds" in shared.text()
    np.testing.assert_array_equal(np.unique(shared.members.folds), [0, 1])
    again = weigh([tmp_path / "E", tmp_path / "other.csv"], tmp_path / "G")
    assert again.members.recipe == found.members.recipe


def test_a_decision_is_fitted_on_honest_blends(files):
    for name in ("good", "fair"):
        table = pd.read_csv(files / f"{name}.csv")
        table.to_csv(files / f"{name}.csv", index=False)
    train = pd.read_csv(files / "data" / "train.csv")
    train[COLUMNS] = train[COLUMNS].round()
    train.to_csv(files / "data" / "train.csv", index=False)
    (files / "mine.yaml").write_text(load_recipe("tiny", [f"data.target_columns={COLUMNS}", "metric=qwk"]).to_yaml())
    found = weighed(files, "good", "fair", "random")
    assert json.loads((files / "E" / "decision.json").read_text())["method"] == "quantiles"
    scores = json.loads((files / "E" / "scores.json").read_text())
    assert scores["score"] == pytest.approx(found.chosen.honest, abs=1e-9)
    assert decide_run(files / "E").scores["quantiles"][1] == scores["score"]


def test_probabilities_of_classes_are_blended_and_logits_are_refused(files):
    draw = np.random.default_rng(0)
    label = draw.integers(3, size=90)
    ids = [f"t{number}" for number in range(90)]
    table = pd.DataFrame({"text_id": ids, "text": "Words.", "label": np.array(["x", "y", "z"])[label]})
    table.to_csv(files / "data" / "train.csv", index=False)
    recipe = ["task={kind: classification}", "metric=log_loss", "data.target_columns=[label]", "data.text_column=text"]
    (files / "mine.yaml").write_text(load_recipe("tiny", recipe).to_yaml())
    for name, noise in (("good", 1.0), ("fair", 2.0), ("random", 9.0)):
        logits = 2 * np.eye(3)[label] + draw.normal(0, noise, (90, 3))
        odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        pd.DataFrame(odds, columns=["x", "y", "z"]).assign(text_id=ids).to_csv(files / f"{name}.csv", index=False)
        pd.DataFrame(logits, columns=["x", "y", "z"]).assign(text_id=ids).to_csv(files / f"l{name}.csv", index=False)
    found = weighed(files, "good", "fair", "random")
    np.testing.assert_allclose(pd.read_csv(files / "E" / "oof.csv")[["x", "y", "z"]].sum(axis=1), 1, atol=1e-6)
    assert found.chosen.method != "equal"
    with pytest.raises(Fb3Error, match=r"lfair.csv: .* is no probability; turn logits into probabilities first$"):
        weighed(files, "good", "lfair", out="F")


def changed(files, change):
    table = pd.read_csv(files / "fair.csv", dtype=str)
    change(table).to_csv(files / "fair.csv", index=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.iloc[5:], r"fair.csv and .*good.csv hold different ids: .* 5 only in .*train the folds"),
        (lambda table: pd.concat([table, table.iloc[:2]]), r"fair.csv: 2 duplicate ids in column text_id: \['t"),
        (
            lambda table: table.assign(syntax="?"),
            r"fair.csv: 120 cells hold no number, first '\?' in row 1 \(text_id t",
        ),
        (
            lambda table: table.drop(columns="syntax"),
            r"fair.csv: no column \['syntax'\].*; a member is a run folder, or",
        ),
        (
            lambda table: table.assign(true_cohesion="2", true_syntax="2"),
            r"fair.csv: its truths differ from .*train.csv in \d+ essays, first text_id t00\d; leave out a member",
        ),
    ],
)
def test_members_that_do_not_fit_are_refused(files, change, words):
    changed(files, change)
    with pytest.raises(Fb3Error, match=words):
        weighed(files, "good", "fair")
    assert not (files / "E").exists()


def test_what_is_missing_is_told_with_the_mend(files):
    with pytest.raises(Fb3Error, match=r"give two members or more"):
        weighed(files, "good")
    with pytest.raises(
        Fb3Error, match=r"nothing names ids, outputs and metric; give --competition NAME .* or --recipe"
    ):
        weighed(files, "good", "fair", recipe=None)
    with pytest.raises(Fb3Error, match=r"no member holds the truths; give --data DIR"):
        weighed(files, "good", "fair", data=None)
    with pytest.raises(Fb3Error, match=r"--method greed: no such method; did you mean 'greedy'\?"):
        weighed(files, "good", "fair", method="greed")
    with pytest.raises(Fb3Error, match=r"data: no oof.csv in it; give a run folder"):
        weigh([files / "good.csv", files / "data"], files / "E", data=files / "data", recipe=files / "mine.yaml")
    train = pd.read_csv(files / "data" / "train.csv", dtype=str)
    train.iloc[3:].to_csv(files / "data" / "train.csv", index=False)
    with pytest.raises(Fb3Error, match=r"train.csv and .*good.csv hold different ids: 3 only in .*good.csv"):
        weighed(files, "good", "fair")


def test_essays_without_predictions_are_left_out_and_counted(files, capsys):
    for name in ("good", "fair"):
        table = pd.read_csv(files / f"{name}.csv", dtype=str)
        table[table.text_id < "t100"].to_csv(files / f"{name}.csv", index=False)
    assert len(weighed(files, "good", "fair").members.ids) == 100
    said = capsys.readouterr().err
    assert "20 of 120 essays" in said
    assert "good.csv names no folds: weights are fitted and scored on a split of the essays" in said
