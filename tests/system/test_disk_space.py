"""A full disk: one line whichever library was writing, nothing lost, and the same call goes on."""

import resource
import shutil
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel

import fb3
from fb3.bundles.bundle import verify_bundle
from fb3.bundles.images import find_image
from fb3.bundles.packing import write_bundle
from fb3.bundles.wheels import fetch_wheels
from fb3.errors import DiskFull, Fb3Error, Stopped
from fb3.models.from_scratch import train_tokenizer
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings
from fb3.recipe.task import RegressionSettings
from fb3.runs.checkpoint import write_weights
from fb3.runs.joining import merge
from fb3.submission.submission_file import SubmissionFile
from fb3.system.disk_space import check_free_space, disk_full_errors
from fb3.system.files import atomic_folder, write_csv, write_json, write_text
from fb3.targets.target import Scores
from fb3.training.run import train
from fb3.tuning.search import tune
from tests.conftest import TINY

TARGET = Scores(DataSettings(target_columns=("a",)), RegressionSettings())


@contextmanager
def little_room(size=20_000):
    """No file of this process may grow beyond so many bytes, which every library meets as it meets a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def a_model():
    return BertModel(BertConfig(vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=1))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    (folder / "file").write_bytes(b"x" * 50_000)
    return folder


WRITERS = {
    "text": lambda folder, large: write_text("x" * 50_000, folder / "file"),
    "json": lambda folder, large: write_json({"x": "x" * 50_000}, folder / "file"),
    "csv": lambda folder, large: write_csv(pd.DataFrame({"a": np.arange(50_000)}), folder / "file"),
    "weights": lambda folder, large: write_weights({"a": torch.zeros(50_000)}, folder / "file"),
    "model": lambda folder, large: a_model().save_pretrained(folder),
    "tokenizer": lambda folder, large: train_tokenizer([f"word{n}" for n in range(3000)], 5000).save(
        str(folder / "file")
    ),
    "pandas": lambda folder, large: pd.DataFrame({"a": np.arange(50_000)}).to_csv(folder / "file"),
    "numpy": lambda folder, large: np.savez(folder / "file", np.zeros(50_000)),
    "copy": lambda folder, large: shutil.copyfile(large / "file", folder / "file"),
    "tree": lambda folder, large: shutil.copytree(large, folder / "tree"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_library_says_it_in_one_line(writer, tmp_path, large):
    with pytest.raises(DiskFull) as error, little_room(), disk_full_errors(tmp_path):
        WRITERS[writer](tmp_path, large)
    line = str(error.value)
    assert line.startswith(str(tmp_path))
    assert "cannot be written (File too large)" in line
    assert line.endswith("B. Make room, and run it again")
    assert "\n" not in line
    assert not list(tmp_path.glob(".*"))


def test_a_full_database_says_it_too(tmp_path):
    base = sqlite3.connect(tmp_path / "study.db")
    base.execute("pragma max_page_count = 3")
    base.execute("create table a (b)")
    with pytest.raises(DiskFull, match=r"cannot be written \(database or disk is full\)"), disk_full_errors(tmp_path):
        base.execute("insert into a values (zeroblob(50000))")


@pytest.mark.parametrize("error", [ValueError("a"), PermissionError(13, "no"), Fb3Error("b"), Stopped("c"), KeyError()])
def test_what_is_no_lack_of_room_passes(error, tmp_path):
    with pytest.raises(type(error)) as raised, disk_full_errors(tmp_path):
        raise error
    assert raised.value is error


def test_what_is_needed_is_said(tmp_path):
    line = r"file: cannot be written \(File too large\): it needs 0\.2 MB, \S+ has "
    with pytest.raises(DiskFull, match=line), little_room():
        write_weights({"a": torch.zeros(50_000)}, tmp_path / "file")
    with pytest.raises(DiskFull, match=r"deep/file: it needs 4611686018\.4 GB, \S+ has .*B\. Make room"):
        check_free_space(tmp_path / "deep" / "file", 2**62)
    check_free_space(tmp_path / "deep" / "file", 1)


def test_a_place_aside_is_named_as_what_it_will_be(tmp_path):
    def fill():
        with atomic_folder(tmp_path / "scratch") as aside, disk_full_errors(aside):
            (aside / "file").write_bytes(b"x" * 50_000)

    with pytest.raises(DiskFull, match=rf"^{tmp_path}/scratch: cannot"), little_room():
        fill()


@pytest.mark.parametrize(
    ("size", "scratch", "line"),
    [
        (20_000, True, r"/scratch: cannot be written .* it needs 0\.\d MB, \S+ has"),
        (4_000, False, r": cannot be written \(File too large\): \S+ has"),  # the tokenizer
        (200_000, False, r"/fold0/model\.safetensors: cannot be written .* it needs 0\.\d MB, \S+ has"),
    ],
)
def test_a_training_says_it_early_and_goes_on(size, scratch, line, run, competition, tmp_path):
    out, backbone = tmp_path / "run", [] if scratch else [f"model.backbone={run}/scratch"]
    recipe = load_recipe("tiny", [*TINY, *backbone])
    with pytest.raises(DiskFull, match=f"^{out}{line}"), little_room(size):
        train(recipe, competition, out)
    assert train(recipe, competition, out).folds == [0, 1]


def test_a_search_ends_and_makes_its_trial_again(competition, run, tmp_path):
    recipe, out = load_recipe("tiny", [*TINY, f"model.backbone={run}/scratch"]), tmp_path / "study"
    with pytest.raises(DiskFull, match=r"fold0/model.safetensors: cannot be written"), little_room(250_000):
        tune(recipe, competition, out, trials=1)
    outcome = tune(recipe, competition, out, trials=1)
    assert [row.state for row in outcome.rows] == ["failed", "complete"]


def test_a_bundle_and_a_merged_run_are_whole_or_as_they_were(run, bundle, tmp_path):
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(DiskFull, match="cannot be written"), little_room(250_000):
        write_bundle([run], out)
    verify_bundle(out)
    assert (out / "manifest.json").read_bytes() == before
    halves = [tmp_path / "a", tmp_path / "b"]
    for fold, half in enumerate(halves):
        shutil.copytree(run, half)
        shutil.rmtree(half / f"fold{1 - fold}")
    with pytest.raises(DiskFull, match="cannot be written"), little_room():
        merge(halves, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "bundle"]
    assert merge(halves, tmp_path / "merged").folds == [0, 1]


def test_a_bundle_that_will_not_fit_is_refused_first(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=r"bundle: it needs \d\.\d MB, \S+ has 0\.3 MB"):
        write_bundle([run], tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_room_is_asked_for_what_is_written_and_where_it_is_known(run, tmp_path, monkeypatch):
    light = [*(run / "encoder").rglob("*"), *Path(fb3.__file__).parent.rglob("*.py")]
    heavy = [run / f"fold{fold}" / "model.safetensors" for fold in (0, 1)]
    free = sum(file.stat().st_size for file in [*light, heavy[0]])
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match="it needs"):
        write_bundle([run], tmp_path / "bundle")
    write_bundle([run], tmp_path / "bundle", link=True)
    unknown = usage._replace(total=0, free=0)  # a mount that does not tell
    monkeypatch.setattr(shutil, "disk_usage", lambda path: unknown)
    write_bundle([run], tmp_path / "bundle")


def test_a_submission_that_stands_is_not_lost(tmp_path):
    ids = pd.Series([f"{n:06}" for n in range(2000)], name="text_id")
    standing = SubmissionFile(ids, [3.0], TARGET, ["a"], tmp_path / "submission.csv")
    before = standing.out.read_bytes()
    with pytest.raises(DiskFull, match=r"submission\.csv: cannot be written"), little_room():
        standing.update(ids, np.full((2000, 1), 3.14159, np.float32))
    assert standing.out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]
    assert (standing.cells["a"] == 3.0).all()


def test_wheels_say_it_as_the_rest_does(tmp_path, monkeypatch):
    lock = tmp_path / "py312.lock"
    lock.write_text("six==1.17.0 --hash=sha256:" + "0" * 64)
    why = "Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr("fb3.bundles.wheels._pip", lambda arguments: why)
    with pytest.raises(DiskFull, match=rf"{tmp_path}: cannot be written \(No space left on device\)"):
        fetch_wheels(lock, tmp_path, find_image("py312"))
