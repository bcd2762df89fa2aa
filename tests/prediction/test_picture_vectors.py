"""Vectors of pictures: the file that is written, whatever happens on the way."""

import json
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from fb3.data.frames.frame_files import open_frames, read_frames
from fb3.data.frames.picture_files import open_picture_files, pictures_of
from fb3.errors import Fb3Error
from fb3.models.image_encoder import ImageEncoder
from fb3.models.picture_processor import PixelMaker
from fb3.prediction import picture_vector_file
from tests.picture_data import drawn, write_image_encoder, write_npz

MODES = ("RGB", "L", "P", "RGBA", "1")


def write_picture_vectors(encoder, files, out, **more):
    """As `fb3 features` calls it."""
    items = {each: pictures_of(file, each) for file in files for each in file.items}
    digests, name = [file.digest() for file in files], Path(encoder).name
    made = ImageEncoder(encoder, torch.device("cpu"))
    return picture_vector_file.write_picture_vectors(made, items, out, name=name, digests=digests, **more)


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    return str(write_image_encoder("swin", tmp_path_factory.mktemp("swin")))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(picture_vector_file, "_PART", 20)
    monkeypatch.setattr("fb3.prediction.picture_vectors._BATCH", 8)


def by_hand(folder, pictures):
    """The vectors of pictures, one at a time."""
    processor, model = AutoImageProcessor.from_pretrained(folder, use_fast=False), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        outs = [model(**processor(images=each, return_tensors="pt")) for each in pictures]
    return np.stack([out.pooler_output[0].numpy() for out in outs])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """An npz, a zip and a folder, and by item the pictures that each should have."""
    place = tmp_path_factory.mktemp("pictures")
    counts = [3, 0, 4, 1, 30]
    write_npz(place / "a.npz", counts)
    starts = np.cumsum([0, *counts])
    truth = {f"n{n}": [drawn(k) for k in range(*ends)] for n, ends in enumerate(pairwise(starts.tolist()))}
    (place / "folder").mkdir()
    with zipfile.ZipFile(place / "b.zip", "w") as archive:
        for number, mode in enumerate(MODES):
            truth[f"z{number}"] = [drawn(100 + number, mode), drawn(200 + number, mode)]
            for part, picture in zip(("2", "10"), truth[f"z{number}"], strict=True):
                with archive.open(f"z{number}/{part}.png", "w") as stream:
                    picture.save(stream, "png")
    for number in range(3):
        path = place / "folder" / f"f{number}.jpg"
        drawn(300 + number).save(path)
        truth[f"f{number}"] = [drawn(300 + number)]
    paths = [place / "a.npz", place / "b.zip", place / "folder"]
    return paths, truth


def test_each_item_has_the_vectors_of_its_pictures(swin, sources, tmp_path):
    paths, truth = sources
    write_picture_vectors(swin, open_picture_files(paths), tmp_path / "f.npz")
    stored = open_frames(tmp_path / "f.npz")
    assert {each: stored.count(each) for each in stored.ids} == {each: len(found) for each, found in truth.items()}
    for each, pictures in truth.items():
        if pictures:
            wanted = by_hand(swin, [picture.convert("RGB") for picture in pictures])
            lossy = 0.05 if each.startswith("f") else 2e-3  # JPEG
            np.testing.assert_allclose(stored.read(each), wanted, rtol=lossy, atol=lossy)
    with np.load(tmp_path / "f.npz") as arrays:
        assert {"ids", "offsets", "features", "encoder"} == {*arrays}
        assert arrays["features"].dtype == np.float16
        made_by = json.loads(str(arrays["encoder"]))
    assert made_by["processor"]["size"] == {"height": 32, "width": 32}
    assert (made_by["vector"], made_by["precision"]) == ("pooler_output", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


class Killed(BaseException):
    """Ends a command as a signal would."""


def killed_after(monkeypatch, calls):
    """Ends the computation after so many batches."""
    encode = ImageEncoder.encode

    def counted(self, pixels):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Killed
        return encode(self, pixels)

    monkeypatch.setattr(ImageEncoder, "encode", counted)


def test_a_killed_command_goes_on_and_writes_the_same_file(swin, sources, tmp_path, monkeypatch):
    paths, _ = sources
    write_picture_vectors(swin, open_picture_files(paths), tmp_path / "whole.npz")
    out, parts = tmp_path / "f.npz", tmp_path / "f.npz.parts"
    for calls in (2, 4):
        with monkeypatch.context() as patch:
            killed_after(patch, calls)
            with pytest.raises(Killed):
                write_picture_vectors(swin, open_picture_files(paths), out)
        assert not out.exists()
    assert sorted(path.name for path in parts.glob("*.npz")) == ["000000000000.npz"]
    (parts / ".000000000024.npz.1.part").write_text("cut off")
    with monkeypatch.context() as patch:
        killed_after(patch, 4)  # batches are left of seven
        write_picture_vectors(swin, open_picture_files(paths), out)
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not parts.exists()


def test_parts_of_another_encoder_or_of_other_pictures_are_refused(swin, tmp_path, monkeypatch):
    path, out = write_npz(tmp_path / "a.npz", [30]), tmp_path / "f.npz"
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Killed):
            write_picture_vectors(swin, open_picture_files([path]), out)
    other = str(write_image_encoder("swin", tmp_path / "other", seed=1))
    with pytest.raises(Fb3Error, match=r"f\.npz\.parts: was begun with other name, weights; delete it, or choose"):
        write_picture_vectors(other, open_picture_files([path]), out)
    write_npz(path, [30], first=1)
    with pytest.raises(Fb3Error, match="was begun with other pictures"):
        write_picture_vectors(swin, open_picture_files([path]), out)


def test_broken_pictures_are_left_out_and_told(swin, tmp_path, capsys):
    folder = tmp_path / "pictures"
    for item in ("a", "b"):
        (folder / item).mkdir(parents=True)
        for number in range(3):
            drawn(number).save(folder / item / f"{number}.jpg")
    whole = (folder / "a" / "1.jpg").read_bytes()
    (folder / "a" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    for number, content in enumerate((b"", b"<html>", whole[:30])):
        (folder / "b" / f"{number}.jpg").write_bytes(content)
    written = write_picture_vectors(swin, open_picture_files([folder]), tmp_path / "f.npz")
    stored = open_frames(tmp_path / "f.npz")
    assert {each: stored.count(each) for each in stored.ids} == {"a": 2, "b": 0}
    np.testing.assert_allclose(
        stored.read("a").astype(float), by_hand(swin, [drawn(0), drawn(2)]), rtol=0.05, atol=0.05
    )
    said = capsys.readouterr().err
    assert f"left out: {folder}: a/1.jpg (" in said
    assert f"left out: {folder}: b/0.jpg (it is empty)" in said
    assert f"left out: {folder}: b/1.jpg (no picture by its first bytes)" in said
    words = "2 items, 1 of them without frames; 2 vectors of 16 numbers (pooler_output); 4 pictures could not be"
    assert words in written.words
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"x")
    with pytest.raises(Fb3Error, match=r"a/0\.jpg \(.*\): no picture can be read, this one first"):
        write_picture_vectors(swin, open_picture_files([folder]), tmp_path / "g.npz")


def test_fewer_pictures_at_a_time_where_memory_runs_out(swin, sources, tmp_path, monkeypatch, capsys):
    paths, _ = sources
    write_picture_vectors(swin, open_picture_files(paths), tmp_path / "whole.npz")
    encode, sizes = ImageEncoder.encode, []

    def limited(self, pixels):
        sizes.append(len(pixels))
        if len(pixels) > most:
            raise RuntimeError("CUDA out of memory")
        return encode(self, pixels)

    monkeypatch.setattr(ImageEncoder, "encode", limited)
    most = 3
    write_picture_vectors(swin, open_picture_files(paths), tmp_path / "f.npz")
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2
    assert "memory does not suffice; 2 pictures at a time from now on" in capsys.readouterr().err
    one, two = (open_frames(tmp_path / name) for name in ("f.npz", "whole.npz"))
    np.testing.assert_allclose(one.frames, two.frames, rtol=2e-3, atol=2e-3)
    most = 0
    with pytest.raises(Fb3Error, match="memory does not suffice for one picture on cpu"):
        write_picture_vectors(swin, open_picture_files(paths), tmp_path / "g.npz")


def test_numbers_that_float16_does_not_hold_are_refused(swin, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageEncoder, "encode", lambda self, pixels: np.full((len(pixels), 16), np.inf, np.float16))
    with pytest.raises(Fb3Error, match=r"more than float16 holds, for .*a\.npz: frames\[0\] or a picture after it"):
        write_picture_vectors(swin, open_picture_files(sources[0]), tmp_path / "f.npz")


def test_pictures_for_which_time_does_not_suffice_are_missing(swin, sources, tmp_path, monkeypatch):
    paths, _ = sources
    write_picture_vectors(swin, open_picture_files(paths), tmp_path / "whole.npz")
    clock = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(picture_vector_file, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        more = {"until": 5, "cut_short": tmp_path / "cut.npz"}
        written = write_picture_vectors(swin, open_picture_files(paths), tmp_path / "out.npz", **more)
    assert not (tmp_path / "out.npz").exists()
    assert written.path == tmp_path / "cut.npz"
    one, two = (open_frames(tmp_path / name) for name in ("cut.npz", "whole.npz"))
    reached = len(one.frames)
    assert 0 < reached < len(two.frames)
    assert written.missing == len(two.frames) - reached
    np.testing.assert_array_equal(one.frames, two.frames[:reached])
    assert [*one.ids] == [*two.ids]
    assert sum(one.count(each) for each in one.ids) == reached


def test_pixels_of_all_pictures_are_never_in_memory_at_once(tmp_path):
    folder = write_image_encoder("vit", tmp_path / "vit")
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"size": {"height": 128, "width": 128}}))
    (file,) = open_picture_files([write_npz(tmp_path / "n.npz", [50] * 6)])
    items = {each: pictures_of(file, each) for each in file.items}
    maker = PixelMaker(str(folder))
    tracemalloc.start()
    picture_vector_file.write_picture_vectors(maker, items, tmp_path / "out.npz", name="vit", digests=["x"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * maker.width
    frames = read_frames(tmp_path / "out.npz", "n5")
    np.testing.assert_array_equal(frames[49], maker.encode(maker.prepare(items["n5"][49].read())[None])[0])
