"""Pictures by id: whatever holds them, an item has the pictures that were put there, in their order."""

import shutil
import zipfile

import numpy as np
import pytest

from fb3.data.frames.frame_references import find_picture_files
from fb3.data.frames.picture_files import Picture, as_rgb, open_picture_files
from fb3.errors import Fb3Error
from tests.picture_data import drawn, write_npz


def zipped(folder, path, around=""):
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted(folder.rglob("*.*")):
            archive.write(each, around + each.relative_to(folder).as_posix())
    return path


def pixels(file, identifier):
    return [np.asarray(as_rgb(Picture(file, place).read())) for place in file.items[identifier]]


@pytest.fixture
def folder(tmp_path):
    """`one`: a picture; `two`: ten pictures and a stranger's file; hidden files of macOS."""
    folder = tmp_path / "pictures"
    (folder / "two").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    drawn(0).save(folder / "one.PNG")
    for number in range(1, 11):
        drawn(number).save(folder / "two" / f"f{number}.png")
    (folder / "two" / "notes.txt").write_text("x")
    (folder / "__MACOSX" / "._one.png").write_text("x")
    return folder


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_are_found_by_item_in_natural_order(form, folder, tmp_path):
    [file] = open_picture_files([folder if form == "folder" else zipped(folder, tmp_path / "p.zip")])
    assert {each: len(places) for each, places in file.items.items()} == {"one": 1, "two": 10}
    np.testing.assert_array_equal(pixels(file, "one")[0], np.asarray(drawn(0)))
    for number, found in enumerate(pixels(file, "two"), 1):
        np.testing.assert_array_equal(found, np.asarray(drawn(number)))


def test_a_folder_around_all_items_is_seen_through(folder, tmp_path):
    (folder / "one.PNG").unlink()
    shutil.copytree(folder / "two", folder / "three")
    [file] = open_picture_files([zipped(folder, tmp_path / "p.zip", around="frames/")])
    assert {each: len(places) for each, places in file.items.items()} == {"three": 10, "two": 10}
    [file] = open_picture_files([zipped(folder / "two", tmp_path / "q.zip", around="images/")])
    assert {each: len(places) for each, places in file.items.items()} == {f"f{n}": 1 for n in range(1, 11)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_any_order(save, tmp_path):
    write_npz(tmp_path / "a.npz", [2, 0, 3])
    with np.load(tmp_path / "a.npz") as arrays:
        save(tmp_path / "b.npz", **arrays)
    [file] = open_picture_files([tmp_path / "b.npz"])
    assert {each: len(places) for each, places in file.items.items()} == {"n0": 2, "n1": 0, "n2": 3}
    for place in (4, 0, 1, 3):
        np.testing.assert_array_equal(np.asarray(Picture(file, place).read()), np.asarray(drawn(place)))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixels_becomes_rgb_or_is_refused(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode in {"CMYK", "I;16"} else "a.png")
    drawn(3, "L" if mode == "I;16" else mode).convert(mode).save(path)
    [file] = open_picture_files([tmp_path])
    if mode == "I;16":
        with pytest.raises(ValueError, match="pixels are of mode I;16; save it with 8 bits"):
            pixels(file, "a")
        return
    [found] = pixels(file, "a")
    assert found.shape == (30, 40, 3)
    np.testing.assert_array_equal(found, np.asarray(drawn(3, mode).convert("RGB")))


def test_the_npz_with_pictures_are_found_among_others(tmp_path):
    with pytest.raises(Fb3Error, match="no npz of it holds uint8 `frames`; name pictures with --frames"):
        find_picture_files(tmp_path)
    np.savez(tmp_path / "features.npz", ids=["a"], offsets=[0, 1], features=np.ones((1, 4), np.float16))
    np.savez(tmp_path / "floats.npz", frames=np.ones((1, 4, 4, 3)))
    (tmp_path / "broken.npz").write_text("x")
    write_npz(tmp_path / "pictures.npz", [1])
    assert find_picture_files(tmp_path) == [tmp_path / "pictures.npz"]


def test_an_item_in_two_files_is_refused(tmp_path):
    one, two = write_npz(tmp_path / "one.npz", [1, 1]), write_npz(tmp_path / "two.npz", [1])
    with pytest.raises(Fb3Error, match=r"one\.npz and .*two\.npz: both have pictures of n0; leave one out"):
        open_picture_files([one, two])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.png", "a.jpg"], "a.jpg and a.png are both of a"),
        (["a.png", "a/1.png"], "a.png and a/1.png are both of a"),
        (["a/b/1.png", "c.png"], "a/b/1.png lies too deep"),
        (["readme.txt"], "it holds no picture"),
    ],
)
def test_images_that_belong_to_no_one_item_are_refused(names, words, tmp_path):
    for name in names:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(b"x")
    with pytest.raises(Fb3Error, match=rf"p: no file with pictures \(.*{words}.*\); want x\.npz of"):
        open_picture_files([tmp_path / "p"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"frames": np.ones((2, 4, 4, 3))}, r"frames are float64 of shape \(2, 4, 4, 3\)"),
        ({"frames": np.ones((2, 3, 4, 4), np.uint8)}, r"frames are uint8 of shape \(2, 3, 4, 4\)"),
        ({"frames": np.ones((3, 4, 4, 3), np.uint8)}, "offsets do not cut 3 frames into 2 items"),
        ({"frames": np.array([{}, {}])}, "frames are object"),
        ({"features": np.ones((2, 4))}, "frames.npy"),
    ],
)
def test_an_npz_of_another_form_is_refused(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", ids=["a", "b"], offsets=[0, 1, 2], **arrays)
    with pytest.raises(Fb3Error, match=rf"a\.npz: no file with pictures \(.*{words}"):
        open_picture_files([tmp_path / "a.npz"])


def test_a_cut_file_is_named(tmp_path):
    path = write_npz(tmp_path / "a.npz", [2])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(Fb3Error, match=r"a\.npz: no file with pictures"):
        open_picture_files([path])
    with pytest.raises(Fb3Error, match=r"gone\.zip: no file with pictures \(No such file"):
        open_picture_files([tmp_path / "gone.zip"])


def test_the_digest_tells_other_contents(folder, tmp_path):
    def digests():
        return [file.digest() for file in open_picture_files([folder, path])]

    path = write_npz(tmp_path / "a.npz", [2, 1])
    before = digests()
    assert digests() == before
    write_npz(path, [1, 2])
    drawn(99).save(folder / "one.PNG")
    assert not {*digests()} & {*before}
