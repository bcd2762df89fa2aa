"""`fb3 features`, in processes of its own."""

import pytest

from fb3.data.frames.frame_references import find_frames
from fb3.recipe.frames import FramesSettings
from tests.picture_data import write_image_encoder, write_npz
from tests.test_cli import fb3


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_image_encoder("vit", tmp_path_factory.mktemp("vit") / "vit-tiny")


def test_pictures_of_a_folder_become_frames_of_items(vit, tmp_path):
    write_npz(tmp_path / "pictures_test.npz", [1, 2], prefix="test")
    write_npz(tmp_path / "pictures_train.npz", [3, 0, 4], prefix="train")
    done = fb3("features", vit, "--data", tmp_path, "--out", tmp_path / "frames.npz")
    assert done.returncode == 0, done.stderr
    assert "pictures_train.npz: 7 pictures of 3 items" in done.stderr
    assert "5 items, 1 of them without frames; 10 vectors of 16 numbers (class_token); 0 pictures" in done.stderr
    ids = ["train2", "test0", "other", "train1"]
    found = find_frames(ids, FramesSettings(files=("frames.npz",)), tmp_path, some=True)
    assert [each.read().shape for each in found] == [(4, 16), (1, 16), (0, 16), (0, 16)]
    again = fb3("features", vit, "--data", tmp_path, "--out", tmp_path / "frames.npz")
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
