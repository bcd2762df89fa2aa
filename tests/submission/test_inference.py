"""Inference as a competitor meets it: without a network, without what the image lacks, with bad files."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from fb3.data.essays import read_essays
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import tokenise
from fb3.errors import Fb3Error
from fb3.prediction.inference_loop import predict
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import load_fold
from fb3.submission.inference import infer
from fb3.tasks.build import build_task
from tests.conftest import ROOT, copied


def test_a_submission_is_the_clipped_mean_of_the_folds_in_the_samples_form(
    bundle, run, competition, tmp_path, no_sockets
):
    submission = infer(bundle, competition, tmp_path / "submission.csv")
    sample = pd.read_csv(competition / "sample_submission.csv", dtype={"text_id": str})
    written = pd.read_csv(tmp_path / "submission.csv", dtype={"text_id": str})
    assert list(written.columns) == list(sample.columns)
    assert written["text_id"].tolist() == sample["text_id"].tolist() == submission["text_id"].tolist()
    recipe = load_recipe(run / "recipe.yaml")
    essays = read_essays(competition / "test.csv", recipe.data)
    encoded = tokenise(essays["full_text"].tolist(), *load_tokenizer(run / "encoder"), recipe.data)
    ids = essays["text_id"].to_numpy()
    folds = [
        predict(load_fold(recipe, run / "encoder", run / f"fold{n}"), build_task(recipe), encoded, ids).values
        for n in (0, 1)
    ]
    np.testing.assert_allclose(written.iloc[:, 1:], np.clip(np.mean(folds, 0), 1, 5), atol=1e-5)


def test_rows_come_back_by_id_and_awkward_essays_are_predicted(bundle, competition, tmp_path):
    data = copied(competition, tmp_path / "data")
    test = pd.read_csv(data / "test.csv", dtype=str)
    plain = infer(bundle, data, tmp_path / "plain.csv").set_index("text_id")
    awkward = ["", " ", "NA", "word " * 4000, "😀" * 50, "שלום עולם", "a\x00b\x07", test["full_text"][0]]
    extra = pd.DataFrame({"text_id": [f"odd{n}" for n in range(len(awkward))], "full_text": awkward})
    mixed = pd.concat([extra, test]).sample(frac=1, random_state=3)
    mixed.to_csv(data / "test.csv", index=False)
    sample = pd.read_csv(data / "sample_submission.csv", dtype={"text_id": str})
    more = pd.concat([sample, extra[["text_id"]]]).fillna(3.0).sample(frac=1, random_state=4)
    more.to_csv(data / "sample_submission.csv", index=False)
    submission = infer(bundle, data, tmp_path / "mixed.csv")
    assert submission["text_id"].tolist() == more["text_id"].tolist()
    by_id = submission.set_index("text_id")
    np.testing.assert_allclose(by_id.loc[plain.index], plain, atol=1e-5)
    np.testing.assert_allclose(by_id.loc["odd7"], plain.loc[test["text_id"][0]], atol=1e-5)
    assert by_id.to_numpy().min() >= 1
    assert by_id.to_numpy().max() <= 5


def test_predictions_out_of_range_are_clipped(run, competition, tmp_path):
    from safetensors.torch import load_file, save_file

    from fb3.bundles.packing import write_bundle
    from fb3.system.files import read_json, sha256, write_json

    high = copied(run, tmp_path / "high")
    for fold, bias in ((0, 40.0), (1, 50.0)):
        path = high / f"fold{fold}" / "model.safetensors"
        tensors = load_file(path)
        tensors["head.linear.bias"].fill_(bias)
        save_file(tensors, path)
        info = path.with_name("fold.json")
        write_json({**read_json(info), "sha256": sha256(path)}, info)
    bundle = write_bundle([high], tmp_path / "bundle").path
    assert (infer(bundle, competition, tmp_path / "s.csv").iloc[:, 1:] == 5.0).all(axis=None)


@pytest.mark.parametrize("side", ["test.csv", "sample_submission.csv"])
def test_ids_on_one_side_only_are_counted_and_shown(bundle, competition, tmp_path, side):
    data = copied(competition, tmp_path / "data")
    lines = (data / side).read_text().splitlines(keepends=True)
    table = pd.read_csv(data / side, dtype=str)
    table.iloc[:-3].to_csv(data / side, index=False)
    assert len(lines) > 3
    with pytest.raises(Fb3Error) as error:
        infer(bundle, data, tmp_path / "s.csv")
    only = "3 only in sample_submission.csv" if side == "test.csv" else f"3 only in {data / 'test.csv'}"
    assert only in str(error.value)
    assert table["text_id"].iloc[-1] in str(error.value)
    stands = pd.read_csv(tmp_path / "s.csv")
    assert len(stands) == len(pd.read_csv(data / "sample_submission.csv"))


def test_another_file_keeps_its_own_order(bundle, competition, tmp_path, capsys):
    submission = infer(bundle, competition, tmp_path / "s.csv", test=competition / "train.csv")
    assert submission["text_id"].tolist() == pd.read_csv(competition / "train.csv", dtype=str)["text_id"].tolist()
    assert "keep the order of train.csv" in capsys.readouterr().err


def test_another_file_with_only_some_of_the_ids_is_refused(bundle, competition, tmp_path):
    part = pd.read_csv(competition / "test.csv", dtype=str).iloc[:5]
    part.to_csv(tmp_path / "part.csv", index=False)
    with pytest.raises(Fb3Error, match="15 only in sample"):
        infer(bundle, competition, tmp_path / "s.csv", test=tmp_path / "part.csv")


def test_missing_files_are_named(bundle, tmp_path, competition):
    data = copied(competition, tmp_path / "data")
    (data / "test.csv").unlink()
    with pytest.raises(Fb3Error, match=r"test\.csv: no such file"):
        infer(bundle, data, tmp_path / "s.csv")
    (data / "sample_submission.csv").unlink()
    with pytest.raises(Fb3Error, match=r"sample_submission\.csv: no such file"):
        infer(bundle, data, tmp_path / "s.csv")


def test_a_place_that_cannot_be_written(bundle, competition, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Fb3Error, match="cannot be written"):
        infer(bundle, competition, tmp_path / "file" / "s.csv")
    with pytest.raises(Fb3Error, match="is a folder"):
        infer(bundle, competition, tmp_path)


BLOCKED = """
import importlib.machinery, runpy, sys
find = importlib.machinery.PathFinder.find_spec
blocked = {"iterstrat", "kaggle", "accelerate", "sklearn", "scipy"}
def finder(name, *arguments, **keywords):
    return None if name.split(".")[0] in blocked else find(name, *arguments, **keywords)
importlib.machinery.PathFinder.find_spec = finder
sys.path.insert(0, sys.argv[1])
sys.argv = ["fb3", "infer", *sys.argv[1:]]
runpy.run_module("fb3", run_name="__main__")
"""


def test_the_packed_source_infers_offline_without_what_the_image_lacks(bundle, competition, tmp_path, without_network):
    """The bundle's own source, in a new process, with the network cut and HF_HUB_OFFLINE unset."""
    out = tmp_path / "s.csv"
    env = {k: v for k, v in os.environ.items() if k not in {"HF_HUB_OFFLINE", "PYTHONPATH"}} | {
        "HF_HOME": str(tmp_path)
    }
    command = [sys.executable, "-B", "-c", BLOCKED, str(bundle), "--data", str(competition), "--out", str(out)]
    done = subprocess.run([*without_network, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain = infer(bundle, competition, tmp_path / "plain.csv")
    np.testing.assert_allclose(pd.read_csv(out).iloc[:, 1:], plain.iloc[:, 1:], atol=1e-5)


def test_the_network_really_is_cut(without_network):
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    done = subprocess.run([*without_network, sys.executable, "-c", program], capture_output=True, text=True)
    assert "unreachable" in done.stderr


def test_the_fast_imports():
    program = "import sys, fb3, fb3.cli; assert not {'torch', 'pandas', 'transformers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    program = """
import sys
from fb3.cli import main
sys.argv = ["fb3", "--help"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_bundle_survives_a_move(bundle, competition, tmp_path):
    moved = shutil.move(copied(bundle, tmp_path / "a"), tmp_path / "elsewhere")
    infer(moved, competition, tmp_path / "s.csv")
