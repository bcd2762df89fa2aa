"""Packing for int8: scales are kept where the score stays, used on CPUs, and cost nothing where they are damaged."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from fb3.bundles import int8_scales as calibration
from fb3.bundles.bundle import read_bundle, verify_bundle
from fb3.bundles.int8_scales import calibrate
from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.essays import read_essays
from fb3.errors import Fb3Error
from fb3.models.kernels.int8_linear import Int8Linear
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode
from fb3.recipe import load_recipe
from fb3.submission.inference import infer
from fb3.system.files import read_json
from fb3.training.run import train
from tests.conftest import copied


@pytest.fixture(scope="module")
def run(competition, tmp_path_factory):
    """A run that leaves the precision of inference open."""
    recipe = load_recipe("tiny", ["train.precision=fp32", "train.epochs=1"])
    return train(recipe, competition, tmp_path_factory.mktemp("auto") / "tiny").path


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    return write_bundle([run], tmp_path_factory.mktemp("int8") / "bundle", int8=calibrate(None), check=replay(None))


@pytest.fixture
def used(monkeypatch):
    """Notes the layers that compute in int8."""
    calls = []
    real = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda *given: calls.append(1) or real(*given))
    return calls


def predicted(bundle, competition, **settings):
    member = read_bundle(bundle).members()[0]
    essays = read_essays(competition / "test.csv", member.recipe.data)
    ids = essays["text_id"].to_numpy()
    return predict_fold(member, 0, encode(member, essays), ids, "cpu", shown=False, **settings).values


def test_scales_are_packed_and_used(packed, competition, tmp_path, used):
    told = packed.manifest["int8"]
    assert set(told["worse"]) == {"tiny/fold0", "tiny/fold1"}
    assert all(worse <= calibration.TOLERANCE for worse in told["worse"].values())
    verify_bundle(packed.path)
    exact = predicted(packed.path, competition, precision="fp32")
    assert not used
    rounded = predicted(packed.path, competition)
    assert used
    assert 0 < np.abs(rounded - exact).max() < 0.05
    table = infer(packed.path, competition, tmp_path / "s.csv", strict=True)
    assert table.iloc[:, 1:].notna().all(axis=None)


def test_damaged_scales_cost_no_fold(packed, competition, tmp_path, used, capsys):
    bundle = write_bundle([read_bundle(packed.path).path / "runs" / "tiny"], tmp_path / "bundle").path
    assert not list(bundle.rglob("int8.safetensors")), "another packing does not take them over"
    assert "int8" not in read_json(bundle / "runs/tiny/fold0/fold.json")
    for folder in packed.path.glob("runs/tiny/fold?"):
        for name in ("int8.safetensors", "fold.json"):
            (bundle / "runs/tiny" / folder.name / name).write_bytes((folder / name).read_bytes())
    predicted(bundle, competition)
    assert used
    used.clear()
    scales = bundle / "runs/tiny/fold0/int8.safetensors"
    scales.write_bytes(scales.read_bytes()[:-1] + b"x")
    plain = predicted(bundle, competition)
    assert not used
    assert "int8.safetensors: its hash is not the one in fold.json" in capsys.readouterr().err
    assert np.isfinite(plain).all()


def test_a_damaged_file_of_scales_is_no_reason_to_leave_the_fold_out(packed, competition, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(packed.path, copy)
    for scales in copy.rglob("int8.safetensors"):
        scales.write_bytes(b"")
    infer(copy, competition, tmp_path / "s.csv", strict=True)
    with pytest.raises(Fb3Error, match=r"int8\.safetensors"):
        verify_bundle(copy)


def test_scales_that_cannot_be_read_cost_no_fold(packed, competition, used, monkeypatch, capsys):
    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fb3.runs.checkpoint.sha256", broken)
    assert np.isfinite(predicted(packed.path, competition)).all()
    assert not used
    assert "not in int8 ([Errno 5]" in capsys.readouterr().err


def test_where_the_score_gets_worse_there_are_none(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibration, "TOLERANCE", -1.0)
    bundle = write_bundle([run], tmp_path / "bundle", int8=calibrate(None))
    assert not list(bundle.path.rglob("int8.safetensors"))
    assert "int8" not in read_json(bundle.path / "runs/tiny/fold0/fold.json")
    assert capsys.readouterr().err.count("it is packed without") == 2
    verify_bundle(bundle.path)


@pytest.mark.parametrize(
    ("metric", "how", "kept"),
    [("spearman", "true_", True), ("spearman", "reversed", False), ("mae", "true_", True), ("mae", "shifted", False)],
)
def test_worse_means_what_the_metric_says(run, metric, how, kept, tmp_path, monkeypatch):
    """A correlation that falls and an error that grows are worse; only an error grows with the targets' range."""
    folder = copied(run, tmp_path / "tiny")
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("metric: mcrmse", f"metric: {metric}"))
    oof = pd.read_csv(folder / "oof.csv", dtype={"text_id": str}).set_index("text_id")

    def predicted(member, position, ids, *_):
        columns = list(member.recipe.data.target_columns)
        values = oof.loc[ids, [f"true_{c}" for c in columns] if how == "true_" else columns].to_numpy()
        return {"true_": values, "reversed": -values, "shifted": values + 9}[how]

    monkeypatch.setattr(calibration, "predict_again", predicted)
    monkeypatch.setattr(calibration, "target_scale", lambda member: 1e6 if metric == "spearman" else 1.0)
    bundle = write_bundle([folder], tmp_path / "bundle", int8=calibrate(None))
    worse = bundle.manifest["int8"]["worse"].values()
    assert all((each < 0) == kept for each in worse)
    assert bool(list(bundle.path.rglob("int8.safetensors"))) == kept


@pytest.mark.parametrize("missing", ["chip", "kernels", "precision", "backend"])
def test_what_cannot_be_measured_is_refused(run, tmp_path, missing, monkeypatch, competition):
    if missing == "chip":
        monkeypatch.setattr(calibration, "cpu_has_int8", lambda: False)
    elif missing == "kernels":

        def none(*given):
            raise NotImplementedError("no such kernel")

        monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", none)
    else:
        wish = {"precision": "fp32", "backend": "openvino"}[missing]
        recipe = load_recipe("tiny", [f"predict.{missing}={wish}", "train.epochs=1"])
        run = train(recipe, competition, tmp_path / "other", folds=[0]).path
    with pytest.raises(Fb3Error, match="int8"):
        write_bundle([run], tmp_path / "bundle", int8=calibrate(None))
    assert not (tmp_path / "bundle").exists()


def test_other_essays_are_refused(run, competition, tmp_path):
    other = tmp_path / "data"
    other.mkdir()
    pd.read_csv(competition / "train.csv").iloc[:20].to_csv(other / "train.csv", index=False)
    with pytest.raises(Fb3Error, match=r"train\.csv and .*oof\.csv hold different ids: \d+ only in"):
        write_bundle([run], tmp_path / "bundle", int8=calibrate(other))
