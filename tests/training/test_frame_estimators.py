"""Estimators on the means of frames: the same predictions as scikit-learn's own on features computed by hand."""

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.frames.frame_files import write_frames
from fb3.ensembles.ensemble import weigh
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.member_recipe import member_recipe
from fb3.submission.inference import infer
from fb3.system.files import read_json
from fb3.training.run import train
from fb3.verification.check import verify
from tests.frames_data import RECIPE, write_items

OWN = {
    "logistic": (["estimator.C=5"], lambda: OneVsRestClassifier(LogisticRegression(C=5, max_iter=2000))),
    "knn": (
        ["estimator.neighbours=7"],
        lambda: KNeighborsClassifier(7, weights="distance", metric="cosine", algorithm="brute"),
    ),
}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def runs(items, tmp_path_factory):
    out, base = tmp_path_factory.mktemp("runs"), load_recipe("tiny", RECIPE)
    for kind, (overrides, _) in OWN.items():
        train(member_recipe(base, kind, [{"kind": "frames"}], overrides), items, out / kind)
    train(member_recipe(base, "logistic", [{"kind": "tfidf", "min_texts": 1}]), items, out / "text")
    return out


def means(items, ids):
    """The mean of each item's frames; NaN where there are none."""
    with np.load(items / "frames.npz") as stored:
        offsets, frames = stored["offsets"], stored["features"].astype(np.float32)
        place = {key: slice(*ends) for key, *ends in zip(stored["ids"], offsets[:-1], offsets[1:], strict=True)}
    found = [frames[place[key]] for key in ids]
    found = [each[[0, 1, 3, 4]] if len(each) == 5 else each for each in found]  # four at most, in even steps
    return np.array([each.mean(0) if len(each) else np.full(frames.shape[1], np.nan) for each in found], np.float16)


def by_hand(train_means, other_means):
    mean = np.nanmean(train_means.astype(np.float64), axis=0).astype(np.float16)
    x, other = (np.where(np.isnan(each), mean, each).astype(np.float64) for each in (train_means, other_means))
    scale = np.sqrt(x.var(0).sum())
    return (x - x.mean(0)) / scale, (other - x.mean(0)) / scale


@pytest.mark.parametrize("kind", OWN)
def test_an_estimator_on_frames_predicts_as_the_library_does(kind, items, runs):
    oof = pd.read_csv(runs / kind / "oof.csv")
    table = pd.read_csv(items / "train.csv").set_index("id").loc[oof["id"]]
    classes = sorted(table["label"].unique())
    for fold in (0, 1):
        rows = (oof["fold"] == fold).to_numpy()
        x, other = by_hand(means(items, oof["id"][~rows]), means(items, oof["id"][rows]))
        own = OWN[kind][1]().fit(x, table["label"][~rows]).predict_proba(other)
        np.testing.assert_allclose(oof.loc[rows, classes], own.clip(1e-7, 1 - 1e-7), atol=1e-4)
    assert verify(runs / kind, items, essays=8).passed


def test_frames_and_texts_are_members_of_one_ensemble(items, runs, tmp_path):
    ensemble = weigh([runs / "logistic", runs / "knn", runs / "text"], tmp_path / "E", data=items, method="equal")
    members = read_json(ensemble.path / "ensemble.json")["members"]
    best = max(read_json(runs / name / "scores.json")["score"] for name in (*OWN, "text"))
    assert ensemble.chosen.honest > best, "neither frames nor texts tell the label alone"
    vectors, words = members[0]["flops"], members[2]["flops"]
    assert 0 < vectors < words / 10, "words are counted, vectors are only read"
    bundle = write_bundle([ensemble.path], tmp_path / "bundle", check=replay(items))
    found = infer(bundle.path, items, tmp_path / "submission.csv", strict=True)
    assert len(members) == len(bundle.manifest["runs"]) == 3
    assert (found["label"].value_counts() > 3).all()
    ids = found["id"].tolist()
    other = shutil.copytree(items, tmp_path / "other")
    write_frames(other / "frames.npz", ids, [np.ones((2, 7))] * len(ids))
    with pytest.raises(Fb3Error, match="frames of 7 numbers, and the fold knows 12; take its training's files"):
        infer(bundle.path, other, tmp_path / "submission.csv", strict=True)


def test_frames_are_named_where_they_are_a_feature_and_only_there():
    base = load_recipe("tiny", RECIPE)
    recipe = member_recipe(base, "logistic", [{"kind": "frames"}])
    for change in ({"data": {**recipe.model_dump(mode="json")["data"], "frames": None}}, {"estimator": "tfidf"}):
        settings = recipe.model_dump(mode="json") | change
        if change.get("estimator"):
            settings["estimator"] = {"kind": "logistic", "features": [{"kind": "tfidf"}]}
        with pytest.raises(Fb3Error, match=r"estimator.features: kind frames and data.frames go together"):
            Recipe.from_mapping(settings, "r")
