"""A submission whatever happens: killed, late, damaged, out of memory, on several devices, on the hidden rows."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from fb3.bundles.packing import write_bundle
from fb3.ensembles.blend_forms import Averaging
from fb3.errors import Fb3Error
from fb3.prediction import fold_prediction, scorer_prediction
from fb3.prediction import inference_loop as prediction
from fb3.prediction import token_budget as budget
from fb3.prediction.member_inputs import encode
from fb3.prediction.predictions import Predictions
from fb3.recipe.data import DataSettings
from fb3.recipe.task import RegressionSettings
from fb3.submission import background, device_pool, fold_queue, form, inference
from fb3.submission.device_pool import DevicePool, share_by_tokens
from fb3.submission.inference import infer
from fb3.submission.submission_file import SubmissionFile
from fb3.system import kaggle as runtime
from fb3.system.files import read_json, sha256, write_json
from fb3.targets.target import Scores
from tests.conftest import ROOT, copied

TARGET = Scores(DataSettings(target_columns=("a",)), RegressionSettings())


@pytest.fixture
def plain(bundle, competition, tmp_path):
    """The submission of all folds."""
    return infer(bundle, competition, tmp_path / "plain.csv")


@pytest.fixture
def one(run, competition, tmp_path):
    """The submission of fold 0 alone."""
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
import fb3.submission.inference, fb3.submission.submission_file
real = fb3.submission.submission_file.SubmissionFile.__init__
def stop(self, *arguments, **named):
    real(self, *arguments, **named)
    assert not {"torch", "transformers", "tokenizers"} & set(sys.modules)
    raise SystemExit(7)
fb3.submission.submission_file.SubmissionFile.__init__ = stop
fb3.submission.inference.infer(*sys.argv[1:])
"""
    out = tmp_path / "s.csv"
    done = subprocess.run([sys.executable, "-c", program, bundle, competition, out], cwd=ROOT)
    assert done.returncode == 7
    written = pd.read_csv(out, dtype={"text_id": str})
    sample = pd.read_csv(competition / "sample_submission.csv", dtype={"text_id": str})
    assert written["text_id"].tolist() == sample["text_id"].tolist()
    assert list(written.columns) == list(sample.columns)
    assert is_means(written, bundle)


def test_the_first_file_stands_before_test_csv_is_read(bundle, competition, tmp_path, monkeypatch):
    """A large test.csv takes seconds, and memory for which a process may be killed."""
    real = form.read_table

    def killed(path, wanted):
        if path.name == "test.csv":
            raise KeyboardInterrupt
        return real(path, wanted)

    monkeypatch.setattr(form, "read_table", killed)
    with pytest.raises(KeyboardInterrupt):
        infer(bundle, competition, tmp_path / "s.csv")
    assert is_means(pd.read_csv(tmp_path / "s.csv"), bundle)


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
    other = copied(run, tmp_path / "other")
    both = write_bundle([run, other], tmp_path / "both").path
    (both / "runs" / "other" / "encoder" / "tokenizer.json").write_text("{}")
    submission = infer(both, competition, tmp_path / "s.csv")
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-6)
    assert "WARNING: without other/fold0" in capsys.readouterr().err


def test_no_run_at_all_leaves_the_means(bundle, competition, tmp_path, monkeypatch):
    broken = copied(bundle, tmp_path / "broken")
    (broken / "runs" / "tiny" / "recipe.yaml").unlink()
    with pytest.raises(Fb3Error, match="no run in it can be used"):
        infer(broken, competition, tmp_path / "s.csv")
    assert is_means(pd.read_csv(tmp_path / "s.csv"), bundle)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert is_means(infer(broken, competition, tmp_path / "t.csv"), bundle)


def test_a_changed_file_that_inference_does_not_read_changes_nothing(bundle, competition, tmp_path, plain):
    changed = copied(bundle, tmp_path / "changed")
    with (changed / "runs" / "tiny" / "oof.csv").open("a") as file:
        file.write("\n")
    np.testing.assert_array_equal(values(infer(changed, competition, tmp_path / "s.csv", strict=True)), values(plain))


def test_a_run_that_this_transformers_does_not_know_costs_only_itself(
    bundle, run, competition, tmp_path, plain, capsys
):
    other = copied(run, tmp_path / "other")
    config = read_json(other / "encoder" / "config.json")
    write_json({**config, "model_type": "of-next-year"}, other / "encoder" / "config.json")
    tokenizer = read_json(other / "encoder" / "tokenizer.json")
    write_json({**tokenizer, "version": "1.0", "padding": None}, other / "encoder" / "tokenizer.json")
    both = write_bundle([other, run], tmp_path / "both").path
    submission = infer(both, competition, tmp_path / "s.csv")
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-6)
    assert "WARNING: without other/fold1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "means"),
    [
        ({"one": None, "two": None}, [1.0, (1 + 5) / 2, (1.5 + 5) / 2, (2.5 + 5) / 2]),
        ({"one": {"a": 0.75}, "two": {"a": 0.25}}, [1.0, (3 * 1 + 5) / 4, (3 * 1.5 + 5) / 4, (3 * 2.5 + 5) / 4]),
        ({"one": {"a": 0.0}, "two": {"a": 1.0}}, [1.0, 5.0, 5.0, 5.0]),
    ],
)
def test_each_of_three_folds_weighs_alike_and_each_run_by_its_weight(tmp_path, weights, means):
    ids = np.array(["x", "y"], object)
    queue = fold_queue.FoldQueue.__new__(fold_queue.FoldQueue)
    queue.means, queue.counts, queue.weights, queue.averaging = {}, {"one": 0, "two": 0}, weights, Averaging()
    queue.submission = SubmissionFile(pd.Series(ids, name="id"), [3.0], TARGET, ["a"], tmp_path / "s.csv")
    arriving = (("one", 1.0), ("two", 5.0), ("one", 2.0), ("one", 4.5))
    for (run, value), mean in zip(arriving, means, strict=True):
        queue._add(run, Predictions(ids, np.full((2, 1), value, np.float32), ("a",), run))
        assert pd.read_csv(tmp_path / "s.csv")["a"].tolist() == pytest.approx([mean] * 2)


def test_only_what_overflowed_is_predicted_again_and_that_is_said(bundle, monkeypatch, capsys):
    member = inference.read_bundle(bundle).members()[0]
    texts = [f"essay {number} of some words" for number in range(9)]
    encoded, ids = (
        encode(member, pd.DataFrame({"full_text": texts})),
        np.array(list("abcdefghi"), object),
    )
    plain = fold_prediction.predict_fold(member, 0, encoded, ids, "cpu", precision="fp32")
    real, tried = scorer_prediction.predict, []

    def overflowing(*arguments, rows, precision, **keywords):
        tried.append((precision, len(rows)))
        out = real(*arguments, rows=rows, precision=precision, **keywords)
        if precision == "bf16":
            out.values[3:5] = np.inf
        return out

    monkeypatch.setattr(scorer_prediction, "predict", overflowing)
    again = fold_prediction.predict_fold(member, 0, encoded, ids, "cpu", precision="bf16")
    assert tried == [("bf16", 9), ("fp32", 2)]
    assert "2 essays got no number in bf16, first d" in capsys.readouterr().err
    assert again.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(again.values[3:5], plain.values[3:5], atol=1e-5)


def test_a_report_that_cannot_be_written_costs_no_submission(bundle, competition, tmp_path, plain, capsys):
    (tmp_path / "s.report.json").mkdir()
    np.testing.assert_array_equal(values(infer(bundle, competition, tmp_path / "s.csv")), values(plain))
    assert "WARNING" in capsys.readouterr().err


def test_folds_that_no_longer_fit_are_skipped(bundle, competition, tmp_path, one, monkeypatch):
    monkeypatch.setattr(fold_queue.FoldTimes, "estimate", lambda times, run: 1e6 if times.seconds else 0.0)
    submission = infer(bundle, competition, tmp_path / "s.csv", deadline="1h")
    np.testing.assert_array_equal(values(submission), values(one))
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used", "skipped"]


def test_a_deadline_within_the_first_fold_keeps_what_was_reached(bundle, competition, tmp_path, one, monkeypatch):
    real, calls = prediction._begin, []

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.0 if len(calls) < 3 else 3.0)
        return real(*arguments)

    monkeypatch.setattr(prediction, "_begin", slow)
    monkeypatch.setattr(budget, "_TOKENS", {"cpu": 512})
    submission = infer(bundle, competition, tmp_path / "s.csv", deadline="2s")
    reached = np.isclose(values(submission), values(one), atol=1e-5).all(1)
    assert 0 < reached.sum() < len(submission)
    assert is_means(submission[~reached], bundle)


def test_no_time_at_all_is_an_error_with_the_means_in_place(bundle, competition, tmp_path):
    with pytest.raises(Fb3Error, match="no fold could be used"):
        infer(bundle, competition, tmp_path / "s.csv", deadline="0.000001s")
    assert is_means(pd.read_csv(tmp_path / "s.csv"), bundle)


def test_the_default_deadline_counts_the_session_where_kaggle_runs_the_whole(tiny, monkeypatch):
    member = inference.Member("m", ROOT, tiny, [])
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_USERNAME", "a laptop with the client")
    assert runtime.session_seconds() == 0
    assert inference._seconds(None, [member]) == pytest.approx(9 * 3600 * 0.95)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert runtime.session_seconds() == 0
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    age = runtime.session_seconds()
    assert 0 < age < 3600
    assert inference._seconds(None, [member]) == pytest.approx(9 * 3600 * 0.95 - age, abs=2)
    assert inference._seconds("1h30m", [member]) == 5400


def test_a_process_below_a_kernel_counts_from_the_kernels_start(tmp_path):
    """A cell that starts `fb3 infer` as a process of its own."""
    kernel = tmp_path / "ipykernel_like.py"
    kernel.write_text(
        "import subprocess, sys, time\n"
        "time.sleep(2)\n"
        "code = 'from fb3.system.kaggle import session_seconds; print(session_seconds())'\n"
        "subprocess.run([sys.executable, '-c', code])\n"
    )
    env = {**os.environ, "KAGGLE_KERNEL_RUN_TYPE": "Batch", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(kernel)], capture_output=True, text=True, env=env, check=True)
    assert float(done.stdout) >= 2


def test_a_fold_that_fails_is_left_out_with_its_traceback(bundle, competition, tmp_path, one, monkeypatch, capsys):
    real = device_pool.predict_fold

    def failing(member, fold, *arguments, **keywords):
        if fold == 1:
            raise ZeroDivisionError("broken chip")
        return real(member, fold, *arguments, **keywords)

    monkeypatch.setattr(device_pool, "predict_fold", failing)
    submission = infer(bundle, competition, tmp_path / "s.csv")
    np.testing.assert_array_equal(values(submission), values(one))
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "broken chip" in said


def test_on_the_hidden_rows_an_error_leaves_the_file(bundle, competition, tmp_path, monkeypatch, capsys):
    data = copied(competition, tmp_path / "data")
    (data / "test.csv").write_text("text_id,full_text\na")
    with pytest.raises(Fb3Error):
        infer(bundle, data, tmp_path / "s.csv")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    submission = infer(bundle, data, tmp_path / "s.csv", deadline="1h")
    assert is_means(submission, bundle)
    assert "ERROR, but this is the run on the hidden rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
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


@pytest.mark.parametrize("dies", ["cpu", "cpu:0"])
def test_a_process_that_dies_hands_over_to_the_others(bundle, competition, tmp_path, plain, monkeypatch, capsys, dies):
    real = device_pool.DevicePool._submit

    def killing(self, number, *arguments, **settings):
        job = real(self, number, *arguments, **settings)
        if len(self.devices) > 1 and self.devices[number] == dies:
            time.sleep(0.2)
            for process in self._pools[number]._processes.values():
                process.kill()
        return job

    monkeypatch.setenv("FB3_DEVICE", "cpu,cpu:0")
    monkeypatch.setattr(device_pool.DevicePool, "_submit", killing)
    submission = infer(bundle, competition, tmp_path / "s.csv", strict=True)
    np.testing.assert_allclose(values(submission), values(plain), atol=1e-5)
    said = capsys.readouterr().err
    assert f"WARNING: the process of {dies} died" in said
    assert f"going on with {({'cpu', 'cpu:0'} - {dies}).pop()}\n" in said


def test_a_process_that_fails_is_replaced_for_the_next_fold(bundle, competition, tmp_path, one, monkeypatch):
    monkeypatch.setenv("FB3_DEVICE", "cpu,cpu")
    restarted = []
    real, restart = device_pool.DevicePool._submit, device_pool.DevicePool._restart

    def damaging(self, number, member, fold, encoded, ids, **settings):
        encoded = "spoilt" if fold == 1 and number == 1 else encoded
        return real(self, number, member, fold, encoded, ids, **settings)

    monkeypatch.setattr(device_pool.DevicePool, "_submit", damaging)
    monkeypatch.setattr(device_pool.DevicePool, "_restart", lambda self, n: restarted.append(n) or restart(self, n))
    submission = infer(bundle, competition, tmp_path / "s.csv")
    np.testing.assert_allclose(values(submission), values(one), atol=1e-5)
    assert restarted == [1, 1], "the fold was tried twice"


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
    encoded = encode(member, pd.DataFrame({"full_text": ["one", "two"]}))
    done = DevicePool(["cpu"]).predict(member, 0, encoded, np.array(["a", "b"], object), time.monotonic() - 1)
    assert isinstance(done, Predictions)
    assert len(done.ids) == 0


def without(table, *rows):
    return table.drop(index=[*rows]).reset_index(drop=True)


# Changes to the sample submission and to test.csv, and which rows of test.csv are then predicted.
MISFITS = {
    "three rows of the sample": (lambda sample: sample.iloc[:3], lambda test: test, None),
    "a part of each": (lambda sample: without(sample, 0, 1), lambda test: without(test, 4, 5), None),
    "no id in common": (lambda sample: sample, lambda test: test.assign(text_id="x" + test["text_id"]), None),
    "a duplicate id in the sample": (lambda sample: pd.concat([sample, sample.iloc[:1]]), lambda test: test, None),
    "no sample that is a table": (lambda sample: pd.DataFrame(), lambda test: test, None),
    "a sample of other columns": (lambda sample: sample.rename(columns={"syntax": "x"}), lambda test: test, None),
    "duplicate and empty ids": (
        lambda sample: sample,
        lambda test: test.assign(text_id=["", *test["text_id"][:2], test["text_id"][1], "  ", *test["text_id"][5:]]),
        [1, 2, *range(5, 20)],
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_on_the_hidden_rows_the_submission_has_the_rows_of_test_csv(
    bundle, competition, tmp_path, plain, monkeypatch, capsys, misfit
):
    data, (change_sample, change_test, kept) = copied(competition, tmp_path / "data"), MISFITS[misfit]
    sample, test = (pd.read_csv(data / name, dtype=str) for name in ("sample_submission.csv", "test.csv"))
    change_sample(sample).to_csv(data / "sample_submission.csv", index=False)
    essays = change_test(test)
    essays.to_csv(data / "test.csv", index=False)
    with pytest.raises(Fb3Error, match=r"sample_submission\.csv|duplicate|empty ids"):  # on a machine of one's own
        infer(bundle, data, tmp_path / "s.csv")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    first = []
    real = SubmissionFile.__init__
    monkeypatch.setattr(
        SubmissionFile,
        "__init__",
        lambda self, ids, *others, **named: first.append(ids.tolist()) or real(self, ids, *others, **named),
    )
    written = infer(bundle, data, tmp_path / "s.csv")
    rows = essays if kept is None else essays.iloc[kept]
    assert first[-1] == rows["text_id"].tolist(), "the file of training means has these rows already"
    assert written["text_id"].tolist() == rows["text_id"].tolist()
    by_text = test.merge(plain.reset_index(), on="text_id").set_index("full_text")
    want = by_text.loc[rows["full_text"], list(plain.columns[1:])]
    np.testing.assert_allclose(written[list(plain.columns[1:])], want, atol=1e-5)
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert report["warnings"]
    assert report["error"] is None
    assert capsys.readouterr().err.count(f"WARNING: {report['warnings'][-1]}") == 2, "said at once and at the end"
    with pytest.raises(Fb3Error):
        infer(bundle, data, tmp_path / "t.csv", strict=True)
    assert pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)["text_id"].tolist() == first[-1]


def test_on_the_hidden_rows_the_order_is_the_samples_where_both_fit(bundle, competition, tmp_path, plain, monkeypatch):
    data = copied(competition, tmp_path / "data")
    test = pd.read_csv(data / "test.csv", dtype=str)
    test[::-1].to_csv(data / "test.csv", index=False)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    written = infer(bundle, data, tmp_path / "s.csv", strict=True)
    assert written["text_id"].tolist() == plain["text_id"].tolist()
    assert json.loads((tmp_path / "s.report.json").read_text())["warnings"] == []


def test_on_the_hidden_rows_another_file_is_predicted_whole(bundle, competition, tmp_path, plain, monkeypatch):
    part = pd.read_csv(competition / "test.csv", dtype=str).iloc[[7, 2]]
    part.to_csv(tmp_path / "part.csv", index=False)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    written = infer(bundle, competition, tmp_path / "s.csv", test=tmp_path / "part.csv")
    assert written["text_id"].tolist() == part["text_id"].tolist()
    np.testing.assert_allclose(values(written), plain.set_index("text_id").loc[part["text_id"]], atol=1e-5)


def test_a_text_column_that_is_not_there_leaves_the_means_of_test_csvs_rows(bundle, competition, tmp_path, monkeypatch):
    data = copied(competition, tmp_path / "data")
    pd.DataFrame({"text_id": ["a", "b"], "text": ["one", "two"]}).to_csv(data / "test.csv", index=False)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    written = infer(bundle, data, tmp_path / "s.csv")
    assert written["text_id"].tolist() == ["a", "b"]
    assert is_means(written, bundle)
    assert "no column ['full_text']" in json.loads((tmp_path / "s.report.json").read_text())["error"]


def test_tokens_that_take_too_long_cost_only_their_run(bundle, run, competition, tmp_path, plain, monkeypatch):
    slow = copied(run, tmp_path / "slow")
    recipe = (slow / "recipe.yaml").read_text()
    (slow / "recipe.yaml").write_text(recipe.replace("max_length: 256", "max_length: 255"))
    both = write_bundle([run, slow], tmp_path / "both").path
    real, over = background.encode_essays, threading.Event()

    def waiting(essays, folder, data):
        if data.max_length == 255:
            over.wait(60)
        return real(essays, folder, data)

    monkeypatch.setattr(background, "encode_essays", waiting)
    try:
        written = infer(both, competition, tmp_path / "s.csv", deadline="6s")
    finally:
        over.set()
    np.testing.assert_allclose(values(written), values(plain), atol=1e-6)
    folds = json.loads((tmp_path / "s.report.json").read_text())["folds"]
    assert [(fold["fold"], fold["status"]) for fold in folds] == [
        ("tiny/fold0", "used"),
        ("tiny/fold1", "used"),
        ("slow/fold0", "skipped"),
        ("slow/fold1", "skipped"),
    ]
    assert "tokens were not made by the deadline" in folds[-1]["reason"]


def test_a_process_ends_at_its_deadline_whatever_the_tokens_do(bundle, competition, tmp_path):
    program = """
import sys, time
from fb3.submission import background
background.encode_essays = lambda *arguments: time.sleep(600)
from fb3.submission.inference import infer
infer(*sys.argv[1:], deadline="1s")
"""
    command = [sys.executable, "-c", program, bundle, competition, tmp_path / "s.csv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "no fold could be used (no time: its tokens were not made by the deadline)" in done.stderr
    assert is_means(pd.read_csv(tmp_path / "s.csv"), bundle)


@pytest.mark.parametrize("damage", ["cut short", "missing", "of other columns"])
def test_a_decision_that_cannot_be_applied_costs_no_submission(
    bundle, competition, tmp_path, monkeypatch, damage, capsys
):
    broken = copied(bundle, tmp_path / "broken")
    content = {"kind": "cut_points", "labels": [[1, 2]], "cuts": [[1.5]]}
    write_json(content, broken / "decision.json")
    manifest = read_json(broken / "manifest.json")
    size, digest = (broken / "decision.json").stat().st_size, sha256(broken / "decision.json")
    manifest["files"]["decision.json"] = {"size": size, "sha256": digest}
    write_json(manifest, broken / "manifest.json")
    if damage == "missing":
        (broken / "decision.json").unlink()
    elif damage == "cut short":
        (broken / "decision.json").write_text("{")
    with pytest.raises(Fb3Error, match="decision"):
        infer(broken, competition, tmp_path / "s.csv", strict=True)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    monkeypatch.setattr(inference, "_predict", lambda *arguments: None)
    assert is_means(infer(broken, competition, tmp_path / "s.csv"), bundle)
    assert "stand in for it" in capsys.readouterr().err
