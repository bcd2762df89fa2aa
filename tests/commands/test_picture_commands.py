"""`fb3 features`, in processes of its own."""

import numpy as np
import pytest

from fb3.recipe import load_recipe
from fb3.training.run import train
from tests.frames_data import RECIPE, write_items
from tests.picture_data import drawn, write_image_encoder
from tests.test_cli import fb3


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_image_encoder("vit", tmp_path_factory.mktemp("vit") / "vit-tiny")


def test_pictures_of_a_competition_become_frames_to_train_on(vit, tmp_path):
    data, rng = write_items(tmp_path / "data", 24), np.random.default_rng(0)
    (data / "frames.npz").unlink()
    for split in ("train", "test"):
        ids, counts = [f"{split}{n}" for n in range(24)], rng.integers(0, 3, 24)
        frames = np.stack([np.asarray(drawn(n)) for n in range(counts.sum())])
        np.savez(data / f"pictures_{split}.npz", ids=ids, offsets=np.cumsum([0, *counts]), frames=frames)
    done = fb3("features", vit, "--data", data, "--out", data / "frames.npz")
    assert done.returncode == 0, done.stderr
    assert "pictures_train.npz: " in done.stderr
    assert " vectors of 16 numbers (class_token); 0 pictures could not be read" in done.stderr
    recipe = load_recipe("tiny", [*RECIPE, "model.frames={kind: single_stream}", "train.epochs=1"])
    train(recipe, data, tmp_path / "run", folds=[0])
    again = fb3("features", vit, "--data", data, "--out", data / "frames.npz")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "frames.npz: is there already; choose another --out" in again.stderr


def test_mistakes_are_one_line(vit, tmp_path):
    out = tmp_path / "f.npz"
    for arguments, words in (
        ([vit, "--data", tmp_path], "--out features.npz is missing"),
        ([vit, "--data", tmp_path, "--out", tmp_path / "f.npy"], "does not end in .npz; choose another --out"),
        ([vit, "--out", out], "--data DIR, or --frames is missing"),
        ([vit, "--data", tmp_path, "--out", out], "no npz of it holds uint8 `frames`"),
        ([tmp_path, "--data", tmp_path, "--out", out], "config.json is missing"),
    ):
        done = fb3("features", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert words in done.stderr
