"""Rehearsals of sound and of broken bundles."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from fb3 import rehearse as rehearsal
from fb3.bundle import read_bundle
from fb3.errors import Fb3Error
from fb3.files import read_json, sha256, write_json
from fb3.images import find_image
from fb3.rehearse import as_json, importable, rehearse, write_hidden_test
from tests.conftest import ROOT, copied


@pytest.fixture
def image():
    return find_image("py312")


def rewritten(bundle, name, change):
    """Changes a packed file, and its entry in the manifest."""
    path = bundle / name
    path.write_text(change(path.read_text()))
    manifest = read_json(bundle / "manifest.json")
    manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    write_json(manifest, bundle / "manifest.json")
    return bundle


def test_a_sound_bundle_passes_in_both_layouts(bundle, competition, image, without_network):
    report = rehearse(bundle, competition, image, rows=60)
    assert report.passed, report.text()
    assert {name: layout["rows"] for name, layout in report.layouts.items()} == {"new": 60, "old": 40}
    assert list(report.layouts["new"]["phases"]) == ["first file", "tokens", "all"]
    assert report.layouts["new"]["peak_memory"] > 2**27
    assert report.projection["t4"] > 0
    assert "PASSED" in report.text()
    assert json.loads(as_json(report))["passed"] is True
    assert "iterstrat" not in importable(image)


def test_an_import_that_the_image_lacks_is_named(bundle, competition, image, tmp_path, without_network):
    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/worker.py", lambda text: "import iterstrat\n" + text)
    report = rehearse(broken, competition, image, rows=12)
    assert not report.passed
    assert "No module named 'iterstrat'" in report.text()


def test_a_try_to_reach_the_network_fails_and_is_told(bundle, competition, image, tmp_path, without_network):
    hub = "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/model', timeout=5)\n"
    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/worker.py", lambda text: hub + text)
    report = rehearse(broken, competition, image, rows=12)
    assert "unreachable" in report.text()


def test_inputs_are_read_only(bundle, competition, image, tmp_path, without_network):
    write = "from pathlib import Path\nPath(__file__).with_name('x').write_text('')\n"
    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/worker.py", lambda text: write + text)
    report = rehearse(broken, competition, image, rows=12)
    assert "Read-only file system" in report.text()
    assert not (broken / "fb3" / "x").exists()


def test_rows_in_another_order_than_their_ids_are_noticed(bundle, competition, image, tmp_path, without_network):
    def shuffle(text):
        assert "values[rows], task.columns, name)" in text
        return text.replace("values[rows], task.columns, name)", "values[rows][::-1], task.columns, name)")

    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/prediction.py", shuffle)
    monkey = rehearsal._SAME
    rehearsal._SAME = 1e-4  # an untrained model gives nearly the same score to all
    try:
        report = rehearse(broken, competition, image, rows=200)
    finally:
        rehearsal._SAME = monkey
    assert "are the same essay" in report.text()


def test_without_namespaces_it_is_weaker_and_says_so(bundle, competition, image, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PATH", "")
    report = rehearse(bundle, competition, image, rows=12)
    assert report.passed, report.text()
    assert "weaker" in report.text()


def test_the_guard_blocks_sockets_where_it_must(tmp_path):
    guard = tmp_path / "sitecustomize.py"
    shutil.copyfile(ROOT / "fb3" / "guard.py", guard)
    settings = {"modules": [], "bundle": str(tmp_path), "log": str(tmp_path / "log"), "sockets": True}
    write_json(settings, tmp_path / "s.json")
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    env = {"PYTHONPATH": str(tmp_path), "FB3_GUARD": str(tmp_path / "s.json")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert "the network is cut (rehearsal)" in done.stderr


def test_the_hidden_rows_are_as_bad_as_rows_can_be(bundle, competition, tmp_path):
    member = read_bundle(bundle).members()[0]
    copies = write_hidden_test(competition, member, tmp_path, 100)
    test = pd.read_csv(tmp_path / "test.csv", dtype=str, keep_default_na=False)
    sample = pd.read_csv(tmp_path / "sample_submission.csv", dtype=str)
    assert len(test) == 100
    assert set(test["text_id"]) == set(sample["text_id"])
    assert test["text_id"].tolist() != sample["text_id"].tolist()
    longest = pd.read_csv(competition / "train.csv")["full_text"].str.len().max()
    assert test["full_text"].str.len().max() >= 5 * longest
    assert "" in set(test["full_text"])
    assert copies
    text = test.set_index("text_id")["full_text"]
    assert all(text[one] == text[two] for one, two in copies.items())


def test_the_hidden_rows_have_a_templates_columns(bundle, competition, tmp_path):
    member = read_bundle(bundle).members()[0]
    train = pd.read_csv(competition / "train.csv").assign(topic=["school", "home"] * 30)
    train.to_csv(tmp_path / "train.csv", index=False)
    text = member.recipe.data.text.model_copy(update={"template": "On {topic}: {full_text}"})
    recipe = member.recipe.model_copy(update={"data": member.recipe.data.model_copy(update={"text": text})})
    (tmp_path / "out").mkdir()
    write_hidden_test(tmp_path, replace(member, recipe=recipe), tmp_path / "out", rows=60, seed=1)
    test = pd.read_csv(tmp_path / "out" / "test.csv", keep_default_na=False)
    assert set(test["topic"]) == {"school", "home"}
    assert (test["full_text"] == "").any(), "the odd essays are still there"


def test_a_damaged_bundle_is_refused_before_anything_runs(bundle, competition, image, tmp_path):
    broken = copied(bundle, tmp_path / "b")
    (broken / "fb3" / "cli.py").write_text("")
    with pytest.raises(Fb3Error, match=r"cli\.py"):
        rehearse(broken, competition, image, rows=12)
