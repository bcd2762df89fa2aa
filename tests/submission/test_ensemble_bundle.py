"""A bundle of an ensemble: weights in the manifest, a weighted mean whichever folds are there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from fb3.bundles.bundle import read_bundle, verify_bundle
from fb3.bundles.packing import write_bundle
from fb3.ensembles.ensemble import weigh
from fb3.ensembles.ensemble_file import packed_runs
from fb3.errors import Fb3Error
from fb3.runs.checkpoint import read_weights, write_weights
from fb3.runs.joining import merge
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
    assert list(by_name) == [found.names()[member] for member in found.stack.order(found.chosen, found.prices())]
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


def test_slope_and_shift_are_packed_and_applied_where_a_fold_of_every_run_is_there(pair, competition, tmp_path):
    columns = list(pair[1].stack.columns)
    line = {"slope": dict.fromkeys(columns, 1.25), "shift": dict.fromkeys(columns, -0.5)}
    packed = write_bundle([changed(pair[0], tmp_path, lambda c: c.update(calibration=line))], tmp_path / "bundle")
    manifest = read_json(packed.path / "manifest.json")
    assert manifest["calibration"] == line
    plain = {name: each for name, each in manifest.items() if name != "calibration"}

    def with_and_without() -> tuple[pd.DataFrame, pd.DataFrame]:
        write_json(manifest, packed.path / "manifest.json")
        after = predicted(packed.path, competition, tmp_path)
        write_json(plain, packed.path / "manifest.json")
        return after, predicted(packed.path, competition, tmp_path)

    shutil.rmtree(packed.path / "runs" / "other" / "fold0")
    after, before = with_and_without()
    np.testing.assert_allclose(after, (before * 1.25 - 0.5).clip(1, 5), atol=1e-5)
    shutil.rmtree(packed.path / "runs" / "other")
    after, before = with_and_without()
    pd.testing.assert_frame_equal(after, before)
    steep = line | {"slope": dict.fromkeys(columns, 10**400)}
    for bad in ({}, steep, line | {"slope": dict.fromkeys(columns, 0)}, line | {"shift": dict.fromkeys(columns, "1")}):
        write_json(manifest | {"calibration": bad}, packed.path / "manifest.json")
        with pytest.raises(Fb3Error, match="want a slope above 0 and a shift for each column that has weights"):
            read_bundle(packed.path)


def test_ranks_of_the_runs_are_averaged_where_the_ensemble_blends_ranks(pair, run, competition, tmp_path):
    packed = write_bundle([changed(pair[0], tmp_path, lambda c: c.update(blended="ranks"))], tmp_path / "bundle")
    mixed = predicted(packed.path, competition, tmp_path)
    expected = 0.0
    for entry in packed.manifest["runs"]:
        path = run if entry["name"] == run.name else pair[0] / entry["name"]
        alone = predicted(write_bundle([path], tmp_path / f"single-{path.name}").path, competition, tmp_path)
        expected += rankdata(alone.loc[mixed.index], axis=0) * np.array([entry["weights"][c] for c in mixed.columns])
    for column, ranked in enumerate(np.round(expected, 6).T):
        assert spearmanr(mixed.iloc[:, column], ranked).statistic > 1 - 1e-9
    write_json(packed.manifest | {"blended": "cubes"}, packed.path / "manifest.json")
    with pytest.raises(Fb3Error, match="blended: want one of values, ranks, logits, votes"):
        read_bundle(packed.path)


@pytest.fixture
def with_csv(run, competition, tmp_path):
    """An ensemble, equally weighed, of the run and of predictions from elsewhere, and those for the test essays."""
    columns = list(pd.read_csv(competition / "sample_submission.csv").columns[1:])
    pd.read_csv(run / "oof.csv", dtype={"text_id": str})[["text_id", *columns]].to_csv(tmp_path / "a.csv", index=False)
    test = pd.read_csv(competition / "test.csv", dtype={"text_id": str})[["text_id"]].iloc[::-1]
    values = 1 + 4 * np.random.default_rng(0).random((len(test), len(columns)))
    test[columns] = values.astype(np.float32)
    test.to_csv(tmp_path / "b.csv", index=False)
    weigh([run, f"{tmp_path / 'a.csv'}={tmp_path / 'b.csv'}"], tmp_path / "E", method="equal")
    return tmp_path / "E", test.set_index("text_id")


def test_predictions_from_elsewhere_take_part_by_id_where_all_test_essays_are_among_them(
    with_csv, run, competition, tmp_path
):
    ensemble, test = with_csv
    packed = write_bundle([ensemble], tmp_path / "bundle")
    verify_bundle(packed.path)
    alone = predicted(write_bundle([run], tmp_path / "single").path, competition, tmp_path)
    np.testing.assert_allclose(predicted(packed.path, competition, tmp_path), (alone + test.loc[alone.index]) / 2, 1e-5)
    others = tmp_path / "others"
    shutil.copytree(competition, others)
    hidden = pd.read_csv(others / "test.csv", dtype={"text_id": str})
    hidden["text_id"] = [f"{identifier}x" for identifier in hidden["text_id"]]
    hidden.to_csv(others / "test.csv", index=False)
    sample = pd.read_csv(others / "sample_submission.csv", dtype={"text_id": str})
    sample.assign(text_id=hidden["text_id"]).to_csv(others / "sample_submission.csv", index=False)
    left = predicted(packed.path, others, tmp_path)
    np.testing.assert_allclose(left.to_numpy(), alone.to_numpy(), atol=1e-6)
    fates = {each["fold"]: each for each in read_json(tmp_path / "submission.report.json")["folds"]}
    assert "the test essays" in fates["predictions/0-b.csv"]["reason"]


def test_predictions_from_elsewhere_stand_before_the_first_fold(with_csv, competition, tmp_path):
    ensemble, test = with_csv
    packed = write_bundle([ensemble], tmp_path / "bundle")
    for file in packed.path.glob("runs/*/fold*/model.safetensors"):
        file.unlink()
    found = predicted(packed.path, competition, tmp_path)
    np.testing.assert_allclose(found, test.loc[found.index], 1e-5)


def test_predictions_from_elsewhere_that_changed_or_stand_alone_are_refused(with_csv, tmp_path):
    ensemble, _ = with_csv
    content = read_json(ensemble / "ensemble.json")
    for member in content["members"][:1]:
        member["weights"] = dict.fromkeys(member["weights"], 0.0)
    write_json(content, ensemble / "ensemble.json")
    with pytest.raises(Fb3Error, match="all members with weight are files of predictions; a bundle wants a run"):
        write_bundle([ensemble], tmp_path / "bundle")
    with (tmp_path / "b.csv").open("a") as file:
        file.write("late,1,1,1,1,1,1\n")
    with pytest.raises(Fb3Error, match=r"b.csv: not the file that was given; run `fb3 ensemble` again"):
        write_bundle([ensemble], tmp_path / "bundle")


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


def test_weights_for_other_columns_than_the_runs_cost_the_weights_alone(pair, competition, tmp_path):
    packed = write_bundle([pair[0] / "E"], tmp_path / "bundle")
    manifest = read_json(packed.path / "manifest.json")
    alike = {key: each for key, each in manifest.items() if key != "blended"}
    alike["runs"] = [{key: each for key, each in run.items() if key != "weights"} for run in manifest["runs"]]
    for run in manifest["runs"]:
        run["weights"] = {"wrong": 0.5}
    manifest["calibration"] = {"slope": {"wrong": 2.0}, "shift": {"wrong": 0.0}}
    write_json(manifest, packed.path / "manifest.json")
    with pytest.raises(Fb3Error, match="its weights are for other columns than its runs"):
        predicted(packed.path, competition, tmp_path, strict=True)
    found = predicted(packed.path, competition, tmp_path)
    assert "All runs weigh alike" in read_json(tmp_path / "submission.report.json")["warnings"][0]
    write_json(alike, packed.path / "manifest.json")
    pd.testing.assert_frame_equal(found, predicted(packed.path, competition, tmp_path))


def test_manifests_with_weights_that_do_not_fit_are_refused(pair, tmp_path):
    folder, _ = pair
    packed = write_bundle([folder / "E"], tmp_path / "bundle")
    manifest = read_json(packed.path / "manifest.json")
    whole = manifest["runs"][0]["weights"]
    for bad in ({"cohesion": 1.0}, {**whole, "cohesion": -1.0}, {**whole, "cohesion": 1e308}, [1, 2], None):
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
        (lambda c: c.update(blended="cubes"), r"blended: 'cubes' is none of values, ranks, logits, votes"),
        (lambda c: c["members"][0].update(sha256="0"), r"was weighed with another oof.csv; run `fb3 ensemble` again"),
        (lambda c: c["members"][0].update(path="nowhere"), r"nowhere is no run folder from here; move it back"),
        (
            lambda c: c["members"][0].update(path=__file__),
            r"is a file of predictions, so there is no model to predict with",
        ),
        (lambda c: c["members"][0].update(weights={"a": -1}), r"want a path and weights, not negative, for each"),
        (lambda c: c.update(calibration={"slope": {}}), "want a slope above 0 and a shift a column"),
        (
            lambda c: c["members"][0].update(weights={"a": 1.0}),
            r"its weights are for \['a'\]; run `fb3 ensemble` again",
        ),
    ],
)
def test_ensembles_that_cannot_be_packed_say_why(pair, tmp_path, change, words):
    with pytest.raises(Fb3Error, match=words):
        write_bundle([changed(pair[0], tmp_path, change)], tmp_path / "bundle")


def test_folders_that_moved_together_are_found_from_any_working_directory(run, tmp_path, monkeypatch):
    for name in ("a", "b"):
        copied(run, tmp_path / "old" / name)
    monkeypatch.chdir(tmp_path / "old")
    weigh(["a", "b"], "deep/E", method="equal")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    stored = read_json(tmp_path / "new" / "deep" / "E" / "ensemble.json")["members"]
    assert [member["path"] for member in stored] == ["../../a", "../../b"]
    assert list(packed_runs([tmp_path / "new" / "deep" / "E"])) == [tmp_path / "new" / "a", tmp_path / "new" / "b"]
    older = [{**member, "path": name} for member, name in zip(stored, "ab", strict=True)]
    content = read_json(tmp_path / "new" / "deep" / "E" / "ensemble.json") | {"members": older}
    write_json(content, tmp_path / "new" / "deep" / "E" / "ensemble.json")
    monkeypatch.chdir(tmp_path / "new")
    assert list(packed_runs([Path("deep/E")])) == [Path("a"), Path("b")]


def test_an_ensemble_is_packed_alone_and_is_no_run_to_verify(pair, run, tmp_path):
    with pytest.raises(Fb3Error, match="holds weights alone; verify its runs, or the bundle of them"):
        verify(pair[0] / "E")
    with pytest.raises(Fb3Error, match="an ensemble is packed alone"):
        write_bundle([pair[0] / "E", run], tmp_path / "bundle")
    with pytest.raises(Fb3Error, match="an ensemble has no folds to join; make one of all members"):
        merge([run, pair[0] / "E"], tmp_path / "merged")


def test_a_run_given_twice_is_refused(run, tmp_path):
    with pytest.raises(Fb3Error, match="is given twice, and a bundle holds a run once; leave one out"):
        write_bundle([run, run / "fold0" / ".."], tmp_path / "bundle")
