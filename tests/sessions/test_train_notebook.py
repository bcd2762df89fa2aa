"""A training session: what it takes up and leaves behind, without a kernel."""

import re
import shutil

import pandas as pd
import pytest

from fb3.bundles.bundle import verify_bundle
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.scores import scores_of
from fb3.sessions.train_notebook import hand_over, take_up, train_session
from fb3.submission.inference import infer
from fb3.system.files import read_json, write_json
from tests.conftest import TINY, copied


@pytest.fixture(scope="module")
def half(run, tiny, tmp_path_factory):
    """The run as it stands once its first fold is trained."""
    half = copied(run, tmp_path_factory.mktemp("half") / "run")
    shutil.rmtree(half / "fold1")
    table = pd.read_csv(half / "oof.csv", dtype=str).query("fold == '0'")
    table.to_csv(half / "oof.csv", index=False)
    write_json(scores_of(half, tiny), half / "scores.json")
    return half


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_part_of_the_folds_is_packed_and_the_run_folder_stays_whole(half, tmp_path):
    run = copied(half, tmp_path / "run")
    text = hand_over(run, tmp_path / "bundle")
    untrained = "folds [1] of 2 are not trained to their end"
    assert re.match(rf"out-of-fold MCRMSE \d\.\d{{4}} \(no CV: {re.escape(untrained)}\) \| ", text)
    assert "folds are left. To go on" in text
    packed = verify_bundle(tmp_path / "bundle")
    assert packed.manifest["runs"] == [{"name": "run", "folds": [0], "caveats": [untrained]}]
    weights = "fold0/model.safetensors"
    assert (packed.path / "runs" / "run" / weights).samefile(run / weights), "its bytes are there once"
    assert contents(run) == {name: content for name, content in contents(half).items() if name != "lock"}


def test_a_debug_run_is_called_none(tiny, competition, tmp_path):
    recipe = tiny.debug()
    train_session(recipe, competition, tmp_path / "run")
    assert hand_over(tmp_path / "run", tmp_path / "bundle").startswith("out-of-fold MCRMSE")


def test_a_whole_run_leaves_its_scores_and_log_and_a_second_call_finds_the_bundle(run, competition, tmp_path):
    whole, out = copied(run, tmp_path / "run"), tmp_path / "bundle"
    text = hand_over(whole, out)
    score = read_json(run / "scores.json")["score"]
    assert f"CV MCRMSE {score:.4f}" in text
    assert "Add Input" in text
    assert "To go on" not in text
    left = contents(whole).keys()
    assert not [name for name in left if name.endswith(".safetensors") or name.startswith(("encoder", "scratch"))]
    assert {"oof.csv", "log.jsonl", "environment.json", "fold1/fold.json"} <= left
    before = contents(out)
    assert hand_over(whole, out) == text
    assert contents(out) == before
    assert len(infer(out, competition, tmp_path / "s.csv", strict=True)) == 20


def test_a_bundle_that_is_refused_is_told_and_deletes_nothing(half, tmp_path):
    run = copied(half, tmp_path / "run")
    (run / "fold0" / "model.safetensors").write_bytes(b"damaged")
    before = contents(run)
    assert hand_over(run, tmp_path / "bundle").startswith("NOT PACKED: ")
    assert contents(run) == before
    assert not (tmp_path / "bundle").exists()


def test_an_attached_run_is_taken_up_once_and_whole_ones_are_not(run, half, tmp_path, monkeypatch):
    inputs, here = tmp_path / "input", tmp_path / "run"
    monkeypatch.setenv("FB3_INPUT", str(inputs))
    copied(run, inputs / "notebooks" / "me" / "older" / "run")
    assert take_up(here) is None
    assert not here.exists()
    earlier = copied(half, inputs / "notebooks" / "me" / "train" / "run")
    for path in (earlier / "log.jsonl", earlier / "encoder"):
        path.chmod(0o555)
    assert take_up(here) == earlier
    found = contents(here)
    assert found == {name: content for name, content in contents(half).items() if name != "lock"}
    assert (here / "log.jsonl").stat().st_mode & 0o200, "it can be written to"
    assert (here / "encoder").stat().st_mode & 0o200
    assert take_up(here) is None, "it is there already"
    shutil.rmtree(here)
    copied(half, inputs / "notebooks" / "me" / "other" / "run")
    with pytest.raises(Fb3Error, match="more than one run to go on with"):
        take_up(here)


def test_an_error_fails_the_session_only_where_nothing_would_be_lost(half, competition, tmp_path):
    run = copied(half, tmp_path / "run")
    other = load_recipe("tiny", [*TINY, "train.seed=9"])
    with pytest.raises(Fb3Error, match="another recipe"):
        train_session(other, competition, run)
    shutil.rmtree(run)
    small = [*TINY, "data.sample=20", "train.save_every_steps=1"]
    nan = load_recipe("tiny", [*small, "optimizer.encoder_rate=1e30", "optimizer.clip=1e30"])
    assert train_session(nan, competition, run).startswith("ERROR: ")
    assert "To go on" in hand_over(run, tmp_path / "bundle")
