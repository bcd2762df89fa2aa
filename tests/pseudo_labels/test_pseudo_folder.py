"""`fb3 pseudo` on real runs: whose labels are whose, what is removed, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fb3.cli import app
from fb3.demo.synthetic import make_essays
from fb3.ensembles.ensemble import weigh
from fb3.errors import Fb3Error
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode
from fb3.pseudo_labels.pseudo_folder import Filters, label_essays
from fb3.pseudo_labels.teachers import Teacher
from fb3.recipe import load_recipe
from fb3.runs.run_folder import Member
from fb3.system.files import read_json, sha256, write_json
from fb3.training.run import train
from tests.conftest import TINY, copied


@pytest.fixture(scope="module")
def unlabelled(competition, tmp_path_factory):
    """Twelve essays; the first has a labelled essay's id, two are nearly labelled essays."""
    labelled = pd.read_csv(competition / "train.csv", dtype=str)
    table = pd.DataFrame({"text_id": [f"u{n}" for n in range(12)]})
    table["full_text"] = [essay.text for essay in make_essays(12, seed=9)]
    table.loc[0, "text_id"] = labelled["text_id"][4]
    table.loc[1, "full_text"] = labelled["full_text"][7].upper() + " And one more sentence."
    table.loc[2, "full_text"] = labelled["full_text"][8].replace(" ", "  ")
    path = tmp_path_factory.mktemp("more") / "more.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def second(competition, tmp_path_factory):
    """Another run on the same split."""
    recipe = load_recipe("tiny", [*TINY, "train.seed=7"])
    return train(recipe, competition, tmp_path_factory.mktemp("second") / "second").path


@pytest.fixture(scope="module")
def ensemble(run, second, tmp_path_factory):
    return weigh([run, second], tmp_path_factory.mktemp("ensemble") / "ens", "equal").path


def predicted(run, fold, essays):
    """A fold's predictions of a CSV's essays, by id."""
    recipe = load_recipe(run / "recipe.yaml")
    member = Member("run", run, recipe, [run / f"fold{fold}"])
    table = pd.read_csv(essays, dtype=str)
    found = predict_fold(member, 0, encode(member, table), table["text_id"].to_numpy(), "cpu", shown=False)
    return found.frame("text_id").set_index("text_id")


def labels_of(folder, fold):
    return pd.read_csv(folder / f"fold{fold}.csv", dtype={"text_id": str}).set_index("text_id")


def test_essays_with_one_text_in_common_of_two_are_no_duplicates(competition, unlabelled, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in (competition / "train.csv", unlabelled):
        table = pd.read_csv(path, dtype=str).assign(prompt="Why should students help their community?")
        table.to_csv(data / path.name, index=False)
    texts = ["data.text_column=prompt", 'data.text.template="{prompt} {full_text}"', "train.save_every_minutes=null"]
    run = train(load_recipe("tiny", [*TINY, *texts, "data.sample=30"]), data, tmp_path / "run").path
    told = label_essays(run, tmp_path / "P", data / unlabelled.name)
    assert "1 have the id of a labelled one and 2 nearly the text of one" in told[0]
    assert len(labels_of(tmp_path / "P", 0)) == 9


def test_a_folds_labels_are_those_of_the_model_that_did_not_see_its_validation_essays(run, unlabelled, tmp_path):
    options = ["--essays", str(unlabelled), "--out", str(tmp_path / "P")]
    done = CliRunner().invoke(app, ["pseudo", str(run), *options])
    assert done.exit_code == 0, done.output
    assert "1 have the id of a labelled one and 2 nearly the text of one" in done.output
    for fold in (0, 1):
        labels = labels_of(tmp_path / "P", fold)
        assert list(labels.index) == [f"u{n}" for n in range(3, 12)]
        np.testing.assert_allclose(labels, predicted(run, fold, unlabelled).loc[labels.index], atol=1e-5)
    assert not np.allclose(labels_of(tmp_path / "P", 0), labels_of(tmp_path / "P", 1))
    content = read_json(tmp_path / "P" / "pseudo.json")
    assert {name: sha256(tmp_path / "P" / name) for name in content["files"]} == content["files"]
    assert content["teachers"][0]["oof_sha256"] == sha256(run / "oof.csv")
    for fold, model in content["teachers"][0]["models"].items():
        assert (model["folder"], model["sha256"]) == (f"fold{fold}", sha256(run / f"fold{fold}" / "model.safetensors"))
    assert [*content["essays"]["near_duplicates"]] == ["u1", "u2"]
    assert (tmp_path / "P" / "folds.csv").read_bytes() == (run / "folds.csv").read_bytes()


def test_members_of_an_ensemble_count_by_their_weights_of_other_folds_where_it_knows_them(
    ensemble, run, second, unlabelled, tmp_path
):
    ens = copied(ensemble, tmp_path / "ens")
    content = json.loads((ens / "ensemble.json").read_text())
    columns = list(content["members"][0]["weights"])
    for member, weight in zip(content["members"], (0.25, 0.75), strict=True):
        member["weights_without_fold"] = {"0": dict.fromkeys(columns, weight)}
    write_json(content, ens / "ensemble.json")
    label_essays(ens, tmp_path / "P", unlabelled)
    for fold, weight in ((0, 0.25), (1, 0.5)):
        wanted = weight * predicted(run, fold, unlabelled) + (1 - weight) * predicted(second, fold, unlabelled)
        labels = labels_of(tmp_path / "P", fold)
        np.testing.assert_allclose(labels, wanted.loc[labels.index], atol=1e-5)
    oof = pd.read_csv(tmp_path / "P" / "oof.csv", dtype={"text_id": str})
    pd.testing.assert_frame_equal(oof, pd.read_csv(ens / "oof.csv", dtype={"text_id": str})[["text_id", *columns]])
    label_essays(ens, tmp_path / "half", unlabelled, filters=Filters(agreement=0.5))
    assert read_json(tmp_path / "half" / "pseudo.json")["kept"] == {"0": 4, "1": 4}


def teacher(run, split, taught=False):
    return Teacher(Member("run", run, load_recipe("tiny"), [run / "fold0", run / "fold1"]), split, taught, None, {})


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ({"a": 0, "b": 0, "c": 1, "d": 1}, 0),
        ({"a": 1, "b": 1, "c": 0, "d": 0}, 1),  # the same folds, numbered otherwise
        ({"a": 1, "b": 1, "c": 1, "d": 0}, 1),  # its model saw less than it might
        ({"a": 1, "c": 0}, 1),  # b is none of its essays
        ({"x": 0, "y": 1}, 0),  # a run on other essays
        ({"a": 2, "b": 2, "c": 0, "d": 1}, None),  # not trained yet
    ],
)
def test_a_model_is_safe_if_it_saw_no_validation_essay(split, wanted, run):
    assert teacher(run, split).model_for(0, {"a", "b"}, run) == wanted


@pytest.mark.parametrize(
    ("split", "taught"),
    [
        ({"a": 0, "b": 1}, False),
        ({"a": 0, "b": -1}, False),
        ({"a": -1, "b": -1}, False),  # every fold of the run trained on both
        ({"a": 0}, True),
        ({"x": 0, "y": 1}, True),  # labels of its own may know both
    ],
)
def test_a_run_whose_models_all_saw_a_validation_essay_is_refused(split, taught, run):
    with pytest.raises(Fb3Error, match=r"has another split than .* put the fold numbers of"):
        teacher(run, split, taught).model_for(0, {"a", "b"}, run)


def test_what_cannot_label_is_refused_in_words(run, ensemble, unlabelled, competition, tmp_path):
    with pytest.raises(Fb3Error, match="no run folder"):
        label_essays(tmp_path, tmp_path / "P", unlabelled)
    with pytest.raises(Fb3Error, match="are for essays to label"):
        label_essays(run, tmp_path / "P", filters=Filters(hard=True))
    ens = copied(ensemble, tmp_path / "ens")
    content = json.loads((ens / "ensemble.json").read_text())
    content["members"][1] |= {"path": str(unlabelled)}
    write_json(content, ens / "ensemble.json")
    with pytest.raises(Fb3Error, match="no model to predict with; run `fb3 ensemble` without it"):
        label_essays(ens, tmp_path / "P", unlabelled)
    table = pd.read_csv(competition / "train.csv", dtype=str)
    table.to_csv(tmp_path / "same.csv", index=False)
    with pytest.raises(Fb3Error, match="each of its 60 essays is a labelled one"):
        label_essays(run, tmp_path / "P", tmp_path / "same.csv")
    assert not (tmp_path / "P").exists()
    swapped = copied(run, tmp_path / "swapped")
    folds = pd.read_csv(swapped / "folds.csv", dtype=str)
    folds.assign(fold=folds["fold"].sample(frac=1, random_state=1).to_numpy()).to_csv(
        swapped / "folds.csv", index=False
    )
    with pytest.raises(Fb3Error, match=r"validated on other essays than folds.csv says"):
        label_essays(swapped, tmp_path / "P", unlabelled)
