"""A bundle of an ensemble: weights in the manifest, a weighted mean whichever folds are there."""

import json

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.bundle import read_bundle, verify_bundle
from fb3.bundles.packing import write_bundle
from fb3.ensembles.ensemble import weigh
from fb3.errors import Fb3Error
from fb3.runs.checkpoint import read_weights, write_weights
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256, write_json
from fb3.verification.check import verify
from tests.conftest import copied


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):
    """The run, and a copy whose last weights are others and whose out-of-fold predictions are better."""
    folder = tmp_path_factory.mktemp("pair")
    other = copied(run, folder / "other")
    for fold in other.glob("fold[0-9]"):
        tensors = read_weights(fold / "model.safetensors")
        head = [name for name in tensors if name.startswith("head")]
        write_weights(
            {name: t * (1.2 if name in head else 1) for name, t in tensors.items()}, fold / "model.safetensors"
        )
        write_json(read_json(fold / "fold.json") | {"sha256": sha256(fold / "model.safetensors")}, fold / "fold.json")
    oof = pd.read_csv(other / "oof.csv", dtype={"text_id": str})
    columns = [column for column in oof.columns if f"true_{column}" in oof.columns]
    noise = np.random.default_rng(0).normal(0, 0.5, (len(oof), len(columns)))
    oof[columns] = (oof[[f"true_{column}" for column in columns]].to_numpy() + noise).clip(1, 5).astype(np.float32)
    oof.to_csv(other / "oof.csv", index=False)
    found = weigh([run, other], folder / "E", method="simplex")
    weights = found.chosen.weights
    assert (weights > 0).all()
    assert np.ptp(weights[0]) > 0.01
    return folder, found


def predicted(bundle, competition, out, **options):
    return infer(bundle, competition, out / "submission.csv", **options).set_index("text_id")


def test_runs_are_weighed_as_in_the_ensemble_and_renormalised_where_one_is_missing(pair, run, competition, tmp_path):
    folder, found = pair
    packed = write_bundle([folder / "E"], tmp_path / "bundle")
    by_name = {entry["name"]: entry["weights"] for entry in packed.manifest["runs"]}
    order = [name for name, _ in sorted(zip(found.names(), found.adds, strict=True), key=lambda pair: -pair[1])]
    assert list(by_name) == order
    verify_bundle(packed.path)
    alone = {}
    for path in (run, folder / "other"):
        single = write_bundle([path], tmp_path / f"single-{path.name}")
        alone[path.name] = predicted(single.path, competition, tmp_path)
    mixed = predicted(packed.path, competition, tmp_path)
    columns = list(mixed.columns)
    weights = {name: np.array([each[column] for column in columns]) for name, each in by_name.items()}
    expected = sum(weights[name] * alone[name].loc[mixed.index] for name in alone)
    assert np.abs(alone["tiny"] - alone["other"]).to_numpy().max() > 0.05
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    for fold in (packed.path / "runs" / "other").glob("fold[0-9]"):
        (fold / "model.safetensors").unlink()
    left = predicted(packed.path, competition, tmp_path)
    np.testing.assert_allclose(left, alone["tiny"].loc[left.index], atol=1e-6)


def test_a_column_without_weight_takes_the_mean_until_a_run_with_weight_arrives(pair, competition, tmp_path):
    folder, _ = pair
    packed = write_bundle([folder / "E"], tmp_path / "bundle")
    manifest = read_json(packed.path / "manifest.json")
    columns = list(manifest["runs"][0]["weights"])
    for run in manifest["runs"]:
        run["weights"] = dict.fromkeys(columns, float(run["name"] == "other")) | {columns[0]: 0.5}
    write_json(manifest, packed.path / "manifest.json")
    both = predicted(packed.path, competition, tmp_path)
    for fold in (packed.path / "runs" / "other").glob("fold[0-9]"):
        (fold / "model.safetensors").unlink()
    left = predicted(packed.path, competition, tmp_path)
    assert np.isfinite(left.to_numpy()).all()
    assert (left[columns[1]] != both[columns[1]]).any()


def test_manifests_with_weights_that_do_not_fit_are_refused(pair, tmp_path):
    folder, _ = pair
    packed = write_bundle([folder / "E"], tmp_path / "bundle")
    manifest = read_json(packed.path / "manifest.json")
    for bad in ({"cohesion": 1.0}, {**manifest["runs"][0]["weights"], "cohesion": -1.0}, [1, 2], None):
        write_json(
            {**manifest, "runs": [manifest["runs"][0] | {"weights": bad}, manifest["runs"][1]]},
            packed.path / "manifest.json",
        )
        with pytest.raises(Fb3Error, match="weights for all of them or for none"):
            read_bundle(packed.path)


def changed(folder, tmp_path, change):
    """A copy of the ensemble whose ensemble.json was changed."""
    copy = copied(folder / "E", tmp_path / "copy")
    content = json.loads((copy / "ensemble.json").read_text())
    change(content)
    write_json(content, copy / "ensemble.json")
    return copy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(blended="ranks"), "blends ranks, and inference averages values"),
        (lambda c: c["members"][0].update(sha256="0"), r"was weighed with another oof.csv; run `fb3 ensemble` again"),
        (lambda c: c["members"][0].update(path="nowhere"), r"nowhere is no run folder from here; move it back"),
        (
            lambda c: c["members"][0].update(path=__file__),
            r"is a file of predictions, so there is no model to predict with",
        ),
        (lambda c: c["members"][0].update(weights={"a": -1}), r"want a path and weights, not negative, for each"),
        (
            lambda c: c["members"][0].update(weights={"a": 1.0}),
            r"its weights are for \['a'\]; run `fb3 ensemble` again",
        ),
    ],
)
def test_ensembles_that_cannot_be_packed_say_why(pair, tmp_path, change, words):
    with pytest.raises(Fb3Error, match=words):
        write_bundle([changed(pair[0], tmp_path, change)], tmp_path / "bundle")


def test_an_ensemble_is_packed_alone_and_is_no_run_to_verify(pair, run, tmp_path):
    with pytest.raises(Fb3Error, match="holds weights alone; verify its runs, or the bundle of them"):
        verify(pair[0] / "E")
    with pytest.raises(Fb3Error, match="an ensemble is packed alone"):
        write_bundle([pair[0] / "E", run], tmp_path / "bundle")
