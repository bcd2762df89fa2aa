"""Frames by id: what a file says is what a batch holds, however many frames an item has."""

import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.data.frames.frame_files import count_frames, open_frames, write_frames
from fb3.data.frames.frame_references import find_frames
from fb3.data.frames.item_frames import ItemFrames, even_steps
from fb3.errors import Fb3Error
from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.recipe.frames import FramesSettings


def made(folder, name="frames.npz", counts=(2, 0, 5), width=3):
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(count, width)).astype(np.float16) for count in counts]
    write_frames(folder / name, [f"i{n}" for n in range(len(counts))], frames)
    return frames


def settings(*files, most=4):
    return FramesSettings(files=files, most=most)


@pytest.mark.parametrize("name", ["frames.npz", "frames.zip"])
def test_a_file_gives_the_frames_that_were_written(name, tmp_path):
    frames = made(tmp_path, name)
    file = open_frames(tmp_path / name)
    assert {each: file.count(each) for each in file.ids} == {"i0": 2, "i1": 0, "i2": 5}
    assert file.width == 3
    for number, each in enumerate(frames):
        np.testing.assert_array_equal(file.read(f"i{number}"), each)


def test_a_zip_may_have_folders_and_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
        with archive.open("feats/a.npy", "w") as stream:
            np.save(stream, np.ones((2, 4), np.float32))
    assert [*open_frames(tmp_path / "f.zip").ids] == ["a"]
    assert count_frames(tmp_path / "f.zip", "a") == 2
    assert count_frames(tmp_path / "f.zip", "b") == 0


def test_batches_are_padded_and_masked_and_items_without_frames_are_empty(tmp_path):
    frames = made(tmp_path)
    items = ItemFrames(find_frames(["i2", "i1", "unknown", "i0"], settings("frames.npz"), tmp_path, True), 4)
    assert items.counts.tolist() == [4, 0, 0, 2]
    batch = items.batch(np.arange(4), drawn=False)
    assert batch["frame_mask"].sum(1).tolist() == [4, 0, 0, 2]
    np.testing.assert_array_equal(batch["frames"][0], frames[2][even_steps(5, 4)])
    np.testing.assert_array_equal(batch["frames"][3, :2], frames[0])
    assert not batch["frames"][batch["frame_mask"] == 0].any()
    assert items.batch(np.array([1]), drawn=True)["frames"].shape == (1, 1, 3)


def test_files_that_know_no_hidden_item_are_told(tmp_path, capsys):
    made(tmp_path)
    assert not any(each.count for each in find_frames(["other"], settings("frames.npz"), tmp_path, False))
    assert "['frames.npz'] hold no frames of any item, such as other" in capsys.readouterr().err


def test_the_spread_is_learned_from_items_that_have_frames(tmp_path):
    frames = made(tmp_path, counts=(0,) * 30 + (3,) + (0,) * 30)
    items = ItemFrames(find_frames([f"i{n}" for n in range(61)], settings("frames.npz"), tmp_path, True), 4)
    embeddings = FrameEmbeddings(3, 4, 4)
    embeddings.fit(items.some(np.arange(61), most=5))
    np.testing.assert_allclose(embeddings.mean, frames[30].astype(np.float32).mean(0), rtol=1e-5)
    embeddings.fit(items.some(np.arange(20), most=5))
    assert embeddings.mean.isfinite().all()
    assert embeddings.factor.isfinite().all()


def test_training_draws_other_frames_in_their_order_and_goes_on_where_it_was(tmp_path):
    write_frames(tmp_path / "frames.npz", ["a"], [np.arange(10)[:, None]])
    references = find_frames(["a"], settings("frames.npz"), tmp_path, True)
    items = ItemFrames(references, 3)
    drawn = [items.batch(np.array([0]), drawn=True)["frames"][0, :, 0].tolist() for _ in range(60)]
    assert all(each == sorted({*each}) and len(each) == 3 for each in drawn)
    assert {number for each in drawn for number in each} == {*map(float, range(10))}
    again = ItemFrames(references, 3)
    state = items.state_dict()
    more = items.batch(np.array([0]), drawn=True)["frames"].tolist()
    again.load_state_dict(state)
    assert again.batch(np.array([0]), drawn=True)["frames"].tolist() == more


@given(st.integers(1, 200), st.integers(1, 60))
def test_even_steps_rise_and_leave_gaps_of_one_size(most, further):
    count = most + further
    places = even_steps(count, most)
    gaps = np.diff(places)
    assert places[0] >= 0
    assert places[-1] < count
    assert (gaps >= count // most).all()
    assert (gaps <= -(-count // most)).all()
    assert abs(places[0] - (count - 1 - places[-1])) <= 1  # the ends are equally far


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"ids": ["a"], "offsets": [0, 2], "features": np.ones((3, 2))}, "do not cut 3 features into 1 items"),
        ({"ids": ["a", "a"], "offsets": [0, 1, 2], "features": np.ones((2, 2))}, "an id stands there twice"),
        ({"ids": ["a"], "offsets": [0, 2], "features": np.ones((2, 2), int)}, "want floats"),
        ({"ids": ["a"], "offsets": [0, 2]}, "features"),
        ({"ids": ["a"], "offsets": [0, 1], "features": np.array([[None]], object)}, "allow_pickle"),
    ],
)
def test_broken_files_are_refused_in_words(arrays, words, tmp_path):
    np.savez(tmp_path / "frames.npz", **arrays)
    with pytest.raises(Fb3Error, match=rf"frames.npz: no file with frames .*{words}"):
        find_frames(["a"], settings("frames.npz"), tmp_path, True)


def test_files_that_do_not_fit_are_refused_in_words(tmp_path):
    made(tmp_path)
    with pytest.raises(Fb3Error, match=r"holds none of \['other.npz'\]"):
        find_frames(["i0"], settings("other.npz"), tmp_path, True)
    with pytest.raises(Fb3Error, match="hold no frames of any item, such as x"):
        find_frames(["x"], settings("frames.npz"), tmp_path, True)
    assert find_frames(["x"], settings("frames.npz"), tmp_path, False)[0].count == 0
    made(tmp_path, "more.zip")
    with pytest.raises(Fb3Error, match=r"i0 has frames in \['frames.npz', 'more.zip'\]"):
        find_frames(["i0"], settings("frames.npz", "more.zip"), tmp_path, True)
    made(tmp_path, "wide.npz", width=4)
    with pytest.raises(Fb3Error, match=r"hold frames of \[3, 4\] numbers"):
        find_frames(["i0"], settings("frames.npz", "wide.npz"), tmp_path, True)
    write_frames(tmp_path / "nan.npz", ["a"], [np.full((1, 2), np.nan)])
    with pytest.raises(Fb3Error, match="frames of a hold NaN or infinity"):
        ItemFrames(find_frames(["a"], settings("nan.npz"), tmp_path, True), 4).batch(np.array([0]), drawn=False)
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for name, width in (("a", 2), ("b", 3)):
            with archive.open(f"{name}.npy", "w") as stream:
                np.save(stream, np.ones((1, width)))
    with pytest.raises(Fb3Error, match=r"b\.npy holds frames of 3 numbers, others of 2"):
        find_frames(["a", "b"], settings("mixed.zip"), tmp_path, True)
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(Fb3Error, match=r"torn\.zip: no file with frames"):
        find_frames(["a"], settings("torn.zip"), tmp_path, True)
