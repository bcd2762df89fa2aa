"""Items with frames, the whole way: training, going on, packing, inference and hidden rows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.frames.frame_files import open_frames, write_frames
from fb3.errors import Fb3Error
from fb3.pretraining.run_pretraining import pretrain_encoder
from fb3.pseudo_labels.pseudo_folder import label_essays
from fb3.recipe import load_recipe
from fb3.rehearsal.hidden_rows import public_files, write_hidden_test
from fb3.submission.inference import infer
from fb3.training.run import train
from fb3.verification.check import verify
from tests.frames_data import RECIPE, write_items
from tests.training.test_saves import broken_run, ended

STREAMS = {
    "single_stream": ["model.frames={kind: single_stream, modality_dropout: 0.1}"],
    "dual_stream": ["model.frames={kind: dual_stream, layers: 1, cross_layers: 1}"],
}


def recipe_of(stream, *further):
    return load_recipe("tiny", [*RECIPE, *STREAMS[stream], "train.epochs=2", "train.batch_size=8", *further])


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def runs(items, tmp_path_factory):
    """A run of each stream, and one of the texts alone."""
    out = tmp_path_factory.mktemp("runs")
    for stream in STREAMS:
        train(recipe_of(stream), items, out / stream)
    text = [line for line in RECIPE if not line.startswith("data.frames")]
    train(load_recipe("tiny", [*text, "train.epochs=1"]), items, out / "text")
    return out


@pytest.mark.parametrize("stream", STREAMS)
def test_labels_that_neither_modality_tells_are_learned(stream, tmp_path):
    data = write_items(tmp_path / "data", 400, seed=1)
    rates = ["optimizer.encoder_rate=3e-3", "optimizer.head_rate=3e-3", "train.epochs=10", "data.max_length=16"]
    learned = train(recipe_of(stream, *rates, "train.batch_size=16"), data, tmp_path / "run", folds=[0])
    assert learned.score.overall > 0.8  # one modality alone reaches a half; an eighth of the items has no frames


@pytest.mark.parametrize("stream", STREAMS)
def test_a_fold_with_drawn_frames_goes_on_bit_for_bit(stream, items, tmp_path, monkeypatch):
    recipe = recipe_of(stream, "data.frames.most=2", "train.save_every_steps=3")
    whole = train(recipe, items, tmp_path / "whole", folds=[0])
    broken_run(recipe, items, tmp_path / "run", monkeypatch)
    assert ended(train(recipe, items, tmp_path / "run", folds=[0]).path) == ended(whole.path)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_run_verifies_packs_and_predicts_where_it_is_not(stream, runs, items, tmp_path):
    run = shutil.copytree(runs / stream, tmp_path / "run")
    assert verify(run, essays=8).passed
    bundle = write_bundle([run], tmp_path / "bundle", check=replay(None))
    shutil.rmtree(run)
    infer(bundle.path, items, tmp_path / "s.csv", strict=True)
    assert pd.read_csv(tmp_path / "s.csv")["id"].tolist() == pd.read_csv(items / "test.csv")["id"].tolist()


def test_runs_of_texts_and_of_frames_share_a_bundle(runs, items, tmp_path):
    bundle = write_bundle(
        [runs / "text", *(runs / stream for stream in STREAMS)], tmp_path / "bundle", check=replay(None)
    )
    infer(bundle.path, items, tmp_path / "s.csv", strict=True)
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used"] * 6


@pytest.mark.parametrize("name", ["frames.npz", "frames.zip"])
def test_hidden_rows_have_the_frames_of_the_rows_they_were_drawn_from(name, runs, items, tmp_path):
    data = shutil.copytree(items, tmp_path / "data")
    stored = open_frames(data / "frames.npz")
    by_id = {identifier: stored.read(identifier) for identifier in stored.ids}
    (data / "frames.npz").unlink()
    write_frames(data / name, list(by_id), list(by_id.values()))
    recipe = recipe_of("single_stream", f"data.frames.files=[{name}]")
    copies = write_hidden_test(data, recipe, public_files(data), tmp_path / "hidden", 50)
    hidden, table = open_frames(tmp_path / "hidden" / name), pd.read_csv(tmp_path / "hidden" / "test.csv")
    assert {*hidden.ids} == {*table["id"]}
    counts = {hidden.count(identifier) for identifier in hidden.ids}
    assert 0 in counts
    assert max(counts) == 2 * recipe.data.frames.most
    known = {each.tobytes() for each in by_id.values()}
    assert sum(hidden.read(identifier).tobytes() in known for identifier in table["id"]) >= 48
    assert copies
    for own, first in copies.items():
        np.testing.assert_array_equal(hidden.read(own), hidden.read(first))
    bundle = write_bundle([runs / "dual_stream"], tmp_path / "bundle")
    if name == "frames.npz":
        infer(bundle.path, tmp_path / "hidden", tmp_path / "s.csv", strict=True)
        found = pd.read_csv(tmp_path / "s.csv").set_index("id")["label"]
        assert all(found[own] == found[first] for own, first in copies.items())


def test_torch_computes_frames_whatever_the_backend(runs, items, tmp_path, capsys):
    run = shutil.copytree(runs / "single_stream", tmp_path / "run")
    text = (run / "recipe.yaml").read_text().replace("backend: auto", "backend: openvino")
    (run / "recipe.yaml").write_text(text)
    bundle = write_bundle([run], tmp_path / "bundle")
    infer(bundle.path, items, tmp_path / "s.csv", strict=True)
    said = capsys.readouterr().err
    assert "frames stand beside; torch does" in said or "openvino is not installed" in said


def test_unlabelled_items_get_labels_and_teach(runs, items, tmp_path):
    more = write_items(tmp_path / "more", 20, seed=5)
    data = shutil.copytree(items, tmp_path / "data")
    table = pd.read_csv(more / "test.csv").assign(id=[f"more{n}" for n in range(20)])
    table.to_csv(tmp_path / "unlabelled.csv", index=False)
    stored = open_frames(more / "frames.npz")
    write_frames(data / "more.zip", table["id"].tolist(), [stored.read(f"test{n}") for n in range(20)])
    found = ["data.frames.files=[frames.npz, more.zip]"]
    teacher = train(recipe_of("dual_stream", *found, "train.epochs=1"), data, tmp_path / "teacher").path
    label_essays(teacher, tmp_path / "labels", tmp_path / "unlabelled.csv", data=data)
    assert len(pd.read_csv(tmp_path / "labels" / "fold0.csv")) == 20  # with titles in common
    taught = recipe_of("single_stream", *found, f"pseudo={{folder: {tmp_path / 'labels'}, use: mix}}", "train.epochs=1")
    assert verify(train(taught, data, tmp_path / "student").path, essays=4).passed


def test_pretraining_of_two_streams_reads_the_texts(items, tmp_path):
    recipe = recipe_of("dual_stream", "pretrain={epochs: 1, length: 16}")
    encoder = pretrain_encoder(recipe, items, tmp_path / "encoder")
    assert not (encoder / "frames.safetensors").exists()
    train(recipe_of("single_stream", f"model.backbone={encoder}", "train.epochs=1"), items, tmp_path / "run", folds=[0])


def test_frames_say_by_which_encoder_they_were_made(items, tmp_path):
    def by(weights):
        data = shutil.copytree(items, tmp_path / weights)
        with np.load(items / "frames.npz") as stored:
            told = json.dumps({"weights": weights, "vector": "mean", "processor": {}})
            np.savez(data / "frames.npz", **stored, encoder=np.array(told))
        return data

    run = train(recipe_of("single_stream", "train.epochs=1"), by("a"), tmp_path / "run", folds=[0]).path
    bundle = write_bundle([run], tmp_path / "bundle")
    for data in (tmp_path / "a", items):
        assert len(infer(bundle.path, data, tmp_path / "s.csv", strict=True))
    with pytest.raises(Fb3Error, match=r"frames\.npz: frames of another image encoder than .* knows; make them by its"):
        infer(bundle.path, by("b"), tmp_path / "s.csv", strict=True)
    shutil.copy(tmp_path / "b" / "frames.npz", tmp_path / "a" / "more.npz")
    with pytest.raises(Fb3Error, match=r"\['frames.npz', 'more.npz'\] are of different image encoders"):
        train(recipe_of("single_stream", "data.frames.files=[frames.npz, more.npz]"), tmp_path / "a", tmp_path / "r2")


def test_frames_of_another_encoder_are_refused(runs, items, tmp_path):
    data = shutil.copytree(items, tmp_path / "data")
    ids = list(open_frames(items / "frames.npz").ids)
    write_frames(data / "frames.npz", ids, [np.ones((2, 7))] * len(ids))
    bundle = write_bundle([runs / "single_stream"], tmp_path / "bundle")
    with pytest.raises(Fb3Error, match=r"frames of 7 numbers, and .* knows 12; take the files"):
        infer(bundle.path, data, tmp_path / "s.csv", strict=True)
    with pytest.raises(Fb3Error, match=r"was trained with another frames\.npz"):
        train(recipe_of("single_stream"), data, shutil.copytree(runs / "single_stream", tmp_path / "run"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["model.stitch={backbone: x}"], "frames stand beside one encoder's text"),
        (["data.augment={mix: 0.5}"], "joins the texts of two items, and not their frames"),
        (["data.windows={length: 64}"], "frames stand beside one text; leave them or windows out"),
        (["model.pooling={kind: token_weighted}"], "reads the places of a text, where frames stand too"),
    ],
)
def test_settings_that_do_not_go_with_frames_are_refused(lines, words, items, tmp_path):
    with pytest.raises(Fb3Error, match=words):
        train(load_recipe("tiny", [*RECIPE, *lines]), items, tmp_path / "run")


def test_heads_that_do_not_divide_the_width_are_refused(items, tmp_path):
    with pytest.raises(Fb3Error, match=r"model\.frames\.heads=6: the encoder's width 64 does not divide by it"):
        train(recipe_of("dual_stream", "model.frames.heads=6"), items, tmp_path / "run")


def test_frames_count_among_the_encoders_positions(items, tiny_bert, tmp_path):
    recipe = recipe_of("single_stream", f"model.backbone={tiny_bert}", "data.max_length=78")
    with pytest.raises(Fb3Error, match=r"data.max_length \+ data.frames.most=82: the encoder has positions for 80"):
        train(recipe, items, tmp_path / "run")
