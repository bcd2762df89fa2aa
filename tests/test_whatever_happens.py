"""A submission whatever happens: killed, late, damaged, out of memory, on several devices, on the hidden rows."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from fb3 import inference, prediction, worker
from fb3.ensemble import Predictions
from fb3.errors import Fb3Error
from fb3.files import read_json
from fb3.inference import infer
from fb3.worker import Workers, share_by_tokens
from tests.conftest import ROOT, copied


@pytest.fixture
def plain(bundle, competition, tmp_path):
    """The submission of all folds."""
    return infer(bundle, competition, tmp_path / "plain.csv")


@pytest.fixture
def one(run, competition, tmp_path):
    """The submission of fold 0 alone."""
    from fb3.packing import write_bundle

    alone = copied(run, tmp_path / "alone")
    for file in (alone / "fold1").iterdir():
        file.unlink()
    return infer(write_bundle([alone], tmp_path / "one").path, competition, tmp_path / "one.csv")


def values(table):
    return table.iloc[:, 1:].to_numpy()


def is_means(table, bundle):
    """Whether every row holds the mean of the folds' training means."""
    means = [read_json(bundle / "runs" / "tiny" / f"fold{n}" / "fold.json")["target_means"] for n in (0, 1)]
    mean = pd.DataFrame(means).mean()[list(table.columns[1:])]
    return np.allclose(values(table), mean.to_numpy(), atol=1e-5)


def test_the_first_file_holds_the_training_means_and_needs_no_torch(bundle, competition, tmp_path):
    program = """
import sys
import fb3.inference, fb3.submission
real = fb3.submission.Standing.__init__
def stop(self, *arguments):
    real(self, *arguments)
    assert "torch" not in sys.modules and "transformers" not in sys.modules
    raise SystemExit(7)
fb3.submission.Standing.__init__ = stop
fb3.inference.infer(*sys.argv[1:])
"""
    out = tmp_path / "s.csv"
    done = subprocess.run([sys.executable, "-c", program, bundle, competition, out], cwd=ROOT)
    assert done.returncode == 7
    written = pd.read_csv(out, dtype={"text_id": str})
    sample = pd.read_csv(competition / "sample_submission.csv", dtype={"text_id": str})
    assert written["text_id"].tolist() == sample["text_id"].tolist()
    assert list(written.columns) == list(sample.columns)
    assert is_means(written, bundle)


def test_killed_at_random_moments_it_leaves_a_valid_file(bundle, competition, tmp_path):
    chance = random.Random(5)
    ids = pd.read_csv(competition / "sample_submission.csv", dtype=str)["text_id"].tolist()
    for number in range(4):
        out = tmp_path / f"{number}.csv"
        command = [sys.executable, "-m", "fb3", "infer", bundle, "--data", competition, "--out", out]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not out.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = pd.read_csv(out, dtype={"text_id": str})
        assert written["text_id"].tolist() == ids
        assert np.isfinite(values(written)).all()


def test_a_damaged_fold_is_left_out_loudly_or_refused(bundle, competition, tmp_path, one, capsys):
    damaged = copied(bundle, tmp_path / "damaged")
    weights = damaged / "runs" / "tiny" / "fold1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(Fb3Error, match=r"fold1.*hash"):
        infer(damaged, competition, tmp_path / "s.csv", strict=True)
    submission = infer(damaged, competition, tmp_path / "s.csv")
    np.testing.assert_array_equal(values(submission), values(one))
    assert "WARNING: without tiny/fold1 (left out)" in capsys.readouterr().err
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used", "left out"]


def test_a_damaged_encoder_folder_takes_its_run_with_it(bundle, run, competition, tmp_path, plain, capsys):
    from fb3.packing import write_bundle

    other = copied(run, tmp_path / "other")
    both = write_bundle([run, other], tmp_path / "both").path
    (both / "runs" / "other" / "encoder" / "tokenizer.json").write_text("{}")
    submission = infer(both, competition, tmp_path / "s.csv")
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-6)
    assert "WARNING: without other/fold0" in capsys.readouterr().err
    (both / "runs" / "tiny" / "recipe.yaml").unlink()
    with pytest.raises(Fb3Error, match="no run in it can be used"):
        infer(both, competition, tmp_path / "s.csv")


def test_folds_that_no_longer_fit_are_skipped(bundle, competition, tmp_path, one, monkeypatch):
    monkeypatch.setattr(inference._Clock, "estimate", lambda clock, run: 1e6 if clock.seconds else 0.0)
    submission = infer(bundle, competition, tmp_path / "s.csv", deadline="1h")
    np.testing.assert_array_equal(values(submission), values(one))
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used", "skipped"]


def test_a_deadline_within_the_first_fold_keeps_what_was_reached(bundle, competition, tmp_path, one, monkeypatch):
    real, calls = prediction._predict_batch, []

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.0 if len(calls) < 3 else 3.0)
        return real(*arguments)

    monkeypatch.setattr(prediction, "_predict_batch", slow)
    monkeypatch.setattr(prediction, "_TOKEN_BUDGET", {"cpu": 512})
    submission = infer(bundle, competition, tmp_path / "s.csv", deadline="2s")
    reached = np.isclose(values(submission), values(one), atol=1e-5).all(1)
    assert 0 < reached.sum() < len(submission)
    assert is_means(submission[~reached], bundle)


def test_no_time_at_all_is_an_error_with_the_means_in_place(bundle, competition, tmp_path):
    with pytest.raises(Fb3Error, match="no fold could be used"):
        infer(bundle, competition, tmp_path / "s.csv", deadline="0.000001s")
    assert is_means(pd.read_csv(tmp_path / "s.csv"), bundle)


def test_the_default_deadline_counts_the_session_on_kaggle_only(tiny, monkeypatch):
    monkeypatch.setattr(inference, "seconds_running", lambda: 3600.0)
    member = inference.Member("m", ROOT, tiny, [])
    for name in [name for name in __import__("os").environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    assert inference._seconds(None, [member]) == pytest.approx(9 * 3600 * 0.95)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert inference._seconds(None, [member]) == pytest.approx(9 * 3600 * 0.95 - 3600)
    assert inference._seconds("1h30m", [member]) == 5400


def test_a_fold_that_fails_is_left_out_with_its_traceback(bundle, competition, tmp_path, one, monkeypatch, capsys):
    real = worker.predict_fold

    def failing(member, fold, *arguments, **keywords):
        if fold == 1:
            raise ZeroDivisionError("broken chip")
        return real(member, fold, *arguments, **keywords)

    monkeypatch.setattr(worker, "predict_fold", failing)
    submission = infer(bundle, competition, tmp_path / "s.csv")
    np.testing.assert_array_equal(values(submission), values(one))
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "broken chip" in said


def test_on_the_hidden_rows_an_error_leaves_the_file(bundle, competition, tmp_path, monkeypatch, capsys):
    data = copied(competition, tmp_path / "data")
    (data / "test.csv").write_text("text_id,full_text\na,")
    with pytest.raises(Fb3Error):
        infer(bundle, data, tmp_path / "s.csv")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    submission = infer(bundle, data, tmp_path / "s.csv", deadline="1h")
    assert is_means(submission, bundle)
    assert "ERROR, but this is the run on the hidden rows" in capsys.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_batch_and_goes_on(bundle, competition, tmp_path, plain, monkeypatch, capsys, error):
    real = prediction.collate

    def scarce(encoded, rows, targets=None):
        if len(rows) > 2:
            raise error
        return real(encoded, rows, targets)

    monkeypatch.setattr(prediction, "collate", scarce)
    submission = infer(bundle, competition, tmp_path / "s.csv", strict=True)
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-5)
    assert "out of memory with" in capsys.readouterr().err


def test_memory_for_not_even_one_essay_is_told(bundle, competition, tmp_path, monkeypatch):
    def none(*arguments):
        raise MemoryError

    monkeypatch.setattr(prediction, "collate", none)
    with pytest.raises(Fb3Error, match="memory does not suffice for one essay of"):
        infer(bundle, competition, tmp_path / "s.csv", strict=True)


def test_two_devices_share_the_essays_and_give_the_same(bundle, competition, tmp_path, plain, monkeypatch):
    monkeypatch.setenv("FB3_DEVICE", "cpu,cpu")
    submission = infer(bundle, competition, tmp_path / "s.csv", strict=True)
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-5)


def test_a_process_that_dies_hands_over_to_the_first_device(bundle, competition, tmp_path, plain, monkeypatch, capsys):
    from concurrent.futures.process import BrokenProcessPool

    def broken(*arguments, **keywords):
        raise BrokenProcessPool

    monkeypatch.setenv("FB3_DEVICE", "cpu,cpu")
    monkeypatch.setattr(worker.ProcessPoolExecutor, "submit", broken)
    submission = infer(bundle, competition, tmp_path / "s.csv", strict=True)
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-5)
    assert "going on with cpu alone" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_devices_get_nearly_equal_tokens_and_each_row_once(parts):
    lengths = np.random.default_rng(0).integers(10, 512, 301)
    shares = share_by_tokens(lengths, parts)
    assert sorted(np.concatenate(shares)) == list(range(301))
    tokens = [lengths[share].sum() for share in shares]
    assert max(tokens) - min(tokens) <= 512


def test_unreached_essays_are_simply_not_in_the_result(bundle, competition):
    packed = inference.read_bundle(bundle)
    member = packed.members()[0]
    encoded = worker.encode(member, ["one", "two"])
    done = Workers(["cpu"]).predict(member, 0, encoded, np.array(["a", "b"], object), -1.0)
    assert isinstance(done, Predictions)
    assert len(done.ids) == 0
