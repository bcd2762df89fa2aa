"""Runs that make the vectors of pictures themselves: from training to the hidden rows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.essays import read_essays
from fb3.data.frames.frame_references import open_pictures
from fb3.errors import Fb3Error
from fb3.models.flops import T4_FLOPS
from fb3.models.image_encoder import ImageEncoder
from fb3.models.picture_flops import picture_flops
from fb3.prediction import frame_vectors
from fb3.pretraining.run_pretraining import pretrain_encoder
from fb3.pseudo_labels.pseudo_folder import label_essays
from fb3.recipe import load_recipe
from fb3.recipe.member_recipe import member_recipe
from fb3.rehearsal.hidden_rows import public_files, write_hidden_test
from fb3.submission.inference import infer
from fb3.submission.run_seconds import price_members
from fb3.system.files import read_json, write_json
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import copied
from tests.picture_data import picture_recipe, write_image_encoder, write_picture_items
from tests.test_cli import fb3

STREAM = "model.frames={kind: single_stream}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_image_encoder("clip", tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_picture_items(tmp_path_factory.mktemp("items") / "data")


@pytest.fixture(scope="module")
def runs(items, clip, tmp_path_factory):
    """A run on pictures, another one, and one of the texts alone."""
    out, lines = tmp_path_factory.mktemp("runs"), picture_recipe(clip)
    train(load_recipe("tiny", [*lines, STREAM]), items, out / "single")
    train(load_recipe("tiny", [*lines, "model.frames={kind: dual_stream, layers: 1}"]), items, out / "dual")
    train(load_recipe("tiny", [line for line in lines if "frames" not in line]), items, out / "text")
    return out


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FB3_CACHE", str(tmp_path / "cache"))


def count_encoders(monkeypatch):
    """The image encoders that are loaded from now on."""
    loaded, load = [], ImageEncoder.__init__

    def counted(self, backbone, *others):
        loaded.append(backbone)
        load(self, backbone, *others)

    monkeypatch.setattr(ImageEncoder, "__init__", counted)
    return loaded


def test_a_run_on_pictures_is_the_run_on_their_vectors(runs, items, clip, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copy(items / name, data)
    done = fb3("features", clip, "--frames", items / "pictures.zip", "--out", data / "vectors.npz")
    assert done.returncode == 0, done.stderr
    lines = [line for line in picture_recipe(clip) if "frames" not in line]
    recipe = load_recipe("tiny", [*lines, STREAM, "data.frames={files: [vectors.npz], most: 3}"])
    train(recipe, data, tmp_path / "run")
    assert (tmp_path / "run" / "oof.csv").read_text() == (runs / "single" / "oof.csv").read_text()
    found = []
    for source, place in ((tmp_path / "run", data), (runs / "single", items)):
        bundle = write_bundle([source], tmp_path / f"bundle{len(found)}").path
        found.append(infer(bundle, place, tmp_path / "s.csv", strict=True))
    pd.testing.assert_frame_equal(*found)


def test_vectors_are_made_once_for_all_runs_of_a_bundle(runs, items, tmp_path, no_cache, monkeypatch):
    packed = write_bundle([runs / "single", runs / "text", runs / "dual"], tmp_path / "bundle", check=replay(items))
    assert [path.name for path in packed.path.rglob("image_encoder")] == ["image_encoder"]
    loaded = count_encoders(monkeypatch)
    infer(packed.path, items, tmp_path / "s.csv", strict=True)
    assert loaded == [str(packed.path / "image_encoder")]
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used"] * 6
    infer(packed.path, items, tmp_path / "s.csv", strict=True)
    assert len(loaded) == 1
    assert verify(packed.path, data=items).passed


@pytest.mark.parametrize("form", ["zip", "npz", "folder"])
def test_hidden_rows_bring_odd_pictures(form, clip, tmp_path, no_cache):
    data = write_picture_items(tmp_path / "data", form)
    name = {"folder": "pictures"}.get(form, f"pictures.{form}")
    lines = picture_recipe(clip, name)
    run = train(load_recipe("tiny", [*lines, STREAM, "train.epochs=1"]), data, tmp_path / "run", folds=[0]).path
    recipe = load_recipe(run / "recipe.yaml")
    hidden = tmp_path / "hidden"
    copies = write_hidden_test(data, recipe, public_files(data, recipe.data.files), hidden, 40)
    (file,) = open_pictures([hidden / name])
    table = pd.read_csv(hidden / "test.csv", dtype=str, keep_default_na=False).set_index("id")["title"]
    counts = {each: len(file.items.get(each, ())) for each in table.index}
    assert max(counts.values()) == 2 * recipe.data.frames.most
    assert any(count == 0 and not table[each].strip() for each, count in counts.items())
    assert any(count == 0 and table[each].strip() for each, count in counts.items())
    bundle = write_bundle([run], tmp_path / "bundle").path
    made = infer(bundle, hidden, tmp_path / "s.csv", strict=True).set_index("id")["label"]
    assert [*made.index] == [*table.index]
    assert all(made[own] == made[first] for own, first in copies.items())
    if form != "npz":
        broken = [place for places in file.items.values() for place in places if len(file.content(place)) < 100]
        assert len(broken) == 1


def test_time_that_does_not_suffice_leaves_pictures_out(runs, items, tmp_path, no_cache, monkeypatch, capsys):
    bundle = write_bundle([runs / "single"], tmp_path / "bundle").path
    bare = shutil.copytree(items, tmp_path / "bare")
    shutil.unpack_archive(bare / "pictures.zip", bare / "unpacked")
    (bare / "pictures.zip").unlink()
    for folder in (bare / "unpacked" / "pictures").glob("test*"):
        shutil.rmtree(folder)
    shutil.make_archive(str(bare / "pictures"), "zip", bare / "unpacked")
    wanted = infer(bundle, bare, tmp_path / "bare.csv", strict=True)
    monkeypatch.setattr("fb3.submission.inference._PICTURES_SHARE", 0)
    cut = infer(bundle, items, tmp_path / "cut.csv", strict=True)
    (file,) = open_pictures([items / "pictures.zip"])
    read = sum(min(3, len(places)) for each, places in file.items.items() if each.startswith("test"))
    assert f"and time did not suffice for {read}" in capsys.readouterr().err
    pd.testing.assert_frame_equal(cut, wanted)


def test_parts_in_the_cache_that_do_not_fit_are_computed_anew(runs, items, clip, tmp_path, no_cache, monkeypatch):
    table = read_essays(items / "train.csv", load_recipe(runs / "single" / "recipe.yaml").data)
    recipe = load_recipe("tiny", [*picture_recipe(clip), STREAM])
    whole = frame_vectors.with_vectors(table, recipe, clip)[frame_vectors.FRAMES_COLUMN]
    stored = [each.read() for each in whole]
    file = whole[0].file
    parts = file.with_name(f"{file.name}.parts")
    for plan in ("{}", "{", None):
        file.unlink()
        parts.mkdir()
        (parts / "000000000000.npz").write_text("broken")
        if plan:
            (parts / "plan.json").write_text(plan)
        again = frame_vectors.with_vectors(table, recipe, clip)[frame_vectors.FRAMES_COLUMN]
        assert all((each.read() == other).all() for each, other in zip(again, stored, strict=True))
        assert not parts.exists()


def test_hidden_rows_without_their_pictures_are_read_as_items_without_any(runs, items, tmp_path, no_cache, monkeypatch):
    bundle = write_bundle([runs / "text", runs / "single"], tmp_path / "bundle").path
    data = shutil.copytree(items, tmp_path / "data")
    (data / "pictures.zip").unlink()
    with pytest.raises(Fb3Error, match=r"holds none of \['pictures.zip'\]"):
        infer(bundle, data, tmp_path / "s.csv", strict=True)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert len(infer(bundle, data, tmp_path / "s.csv")) == 40
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used"] * 4
    assert "All items are read as ones without frames" in report["warnings"][0]


def test_a_broken_image_encoder_costs_the_runs_on_pictures_alone(runs, items, tmp_path, no_cache):
    bundle = write_bundle([runs / "text", runs / "single"], tmp_path / "bundle").path
    weights = bundle / "image_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.write_bytes(content[: len(content) // 2])
    infer(bundle, items, tmp_path / "s.csv")
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert {fold["fold"]: fold["status"] for fold in report["folds"]} == {
        "text/fold0": "used",
        "text/fold1": "used",
        "single/fold0": "left out",
        "single/fold1": "left out",
    }
    assert "model.safetensors: 17884 bytes, packed were" in json.dumps(report["folds"])
    content[-3] ^= 1
    weights.write_bytes(content)
    infer(bundle, items, tmp_path / "s.csv")
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"] if fold["fold"].startswith("single")] == ["left out"] * 2
    assert not verify(bundle, data=items).passed


def test_a_changed_image_encoder_is_a_fault_of_the_run(runs, items, tmp_path):
    run = shutil.copytree(runs / "single", tmp_path / "run")
    assert verify(run, data=items, essays=6).passed
    file = run / "image_encoder" / "preprocessor_config.json"
    file.write_text(file.read_text().replace("0.48145466", "0.38145466"))
    assert any(
        "image_encoder/preprocessor_config.json: not the file" in each for each in verify(run, data=items).faults
    )


def test_a_start_that_failed_is_started_over_with_the_recipes_own_encoder(runs, items, clip, tmp_path, monkeypatch):
    def stopped(*given, **named):
        raise KeyboardInterrupt

    other = write_image_encoder("clip", tmp_path / "other", seed=1)
    with monkeypatch.context() as patched:
        patched.setattr("fb3.training.run_pictures.with_vectors", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(load_recipe("tiny", [*picture_recipe(other), STREAM]), items, tmp_path / "run", folds=[0])
    train(load_recipe("tiny", [*picture_recipe(clip), STREAM, "train.epochs=1"]), items, tmp_path / "run", folds=[0])
    mine, wanted = (run / "image_encoder" / "model.safetensors" for run in (tmp_path / "run", runs / "single"))
    assert mine.read_bytes() == wanted.read_bytes()


def test_a_run_without_its_image_encoder_is_not_packed(runs, tmp_path):
    run = shutil.copytree(runs / "single", tmp_path / "run")
    shutil.rmtree(run / "image_encoder")
    with pytest.raises(Fb3Error, match=r"run/image_encoder/config\.json: missing; copy the run again"):
        write_bundle([run], tmp_path / "bundle")


def test_runs_of_two_image_encoders_do_not_share_a_bundle(runs, items, tmp_path):
    other = write_image_encoder("clip", tmp_path / "other", seed=1)
    run = train(load_recipe("tiny", [*picture_recipe(other), STREAM, "train.epochs=1"]), items, tmp_path / "run").path
    with pytest.raises(Fb3Error, match="or of different image encoders; pack these runs separately"):
        write_bundle([runs / "single", run], tmp_path / "bundle")


def test_unlabelled_items_with_pictures_teach_and_pretrain(runs, items, clip, tmp_path):
    label_essays(runs / "single", tmp_path / "labels", items / "test.csv", data=items)
    lines = [*picture_recipe(clip), STREAM, "train.epochs=1"]
    pseudo = f"pseudo={{folder: {tmp_path / 'labels'}, use: mix}}"
    train(load_recipe("tiny", [*lines, pseudo]), items, tmp_path / "student", folds=[0])
    recipe = load_recipe("tiny", [*lines, "pretrain={epochs: 1, length: 16, objectives: [{kind: mlm}, {kind: mfm}]}"])
    encoder = pretrain_encoder(recipe, items, tmp_path / "encoder", [items / "test.csv"])
    assert (encoder / "frames.safetensors").is_file()
    assert not (encoder / "image_encoder").exists()
    train(load_recipe("tiny", [*lines, f"model.backbone={encoder}"]), items, tmp_path / "tuned", folds=[0])
    other = write_image_encoder("clip", tmp_path / "other", seed=2)
    lines = [*picture_recipe(other), STREAM, f"model.backbone={encoder}"]
    with pytest.raises(Fb3Error, match="frames of another image encoder than"):
        train(load_recipe("tiny", lines), items, tmp_path / "wrong")


def test_an_estimator_reads_the_vectors_too(items, clip, tmp_path, no_cache):
    recipe = member_recipe(load_recipe("tiny", picture_recipe(clip)), "logistic", [{"kind": "frames"}])
    run = train(recipe, items, tmp_path / "run").path
    bundle = write_bundle([run], tmp_path / "bundle", check=replay(items)).path
    assert len(infer(bundle, items, tmp_path / "s.csv", strict=True)) == 40


@pytest.mark.parametrize("more", [[], [{"kind": "frames"}]])
def test_an_estimator_reads_the_texts_as_a_run_on_pictures_does(more, runs, items, tmp_path):
    base = load_recipe(runs / "dual" / "recipe.yaml")
    features = [{"kind": "embeddings", "encoder": str(runs / "dual")}, *more]
    run = train(member_recipe(base, "logistic", features), items, tmp_path / "run").path
    bundle = write_bundle([run], tmp_path / "bundle", check=replay(items)).path
    assert len(infer(bundle, items, tmp_path / "s.csv", strict=True)) == 40


def test_pictures_without_an_encoder_and_the_other_way_round(items, clip, tmp_path):
    lines = [line for line in picture_recipe(clip) if "frames" not in line]
    recipe = load_recipe("tiny", [*lines, STREAM, "data.frames={files: [pictures.zip]}"])
    with pytest.raises(Fb3Error, match=r"no file with frames .*; pictures want data\.frames\.encoder too"):
        train(recipe, items, tmp_path / "run")
    with pytest.raises(Fb3Error, match=r"data\.frames\.encoder=.*nowhere/at/all: no such folder"):
        train(load_recipe("tiny", [*picture_recipe("/nowhere/at/all"), STREAM]), items, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_at_inference_only_the_pictures_in_even_steps_are_computed(items, clip, tmp_path, no_cache):
    recipe = load_recipe("tiny", [*picture_recipe(clip, most=2), STREAM])
    table = read_essays(items / "train.csv", recipe.data)
    all_of, some = (
        frame_vectors.with_vectors(table, recipe, clip, drawn=drawn)[frame_vectors.FRAMES_COLUMN]
        for drawn in (True, False)
    )
    assert max(each.count for each in all_of) == 4
    for whole, each in zip(all_of, some, strict=True):
        assert each.count == min(2, whole.count)
        steps = ((np.arange(each.count) + 0.5) * whole.count / max(1, each.count)).astype(int)
        np.testing.assert_array_equal(each.read(), whole.read()[steps])


@pytest.mark.parametrize("machine", ["t4", "here"])
def test_runs_that_read_the_same_pictures_share_their_time(machine, runs, items, tmp_path, no_cache, capsys):
    """--limit prices the pictures once for both, and no vector is computed to count FLOPs."""
    _, limit = price_members([runs / "single", runs / "text", runs / "dual"], "2h", 1000, machine, items)
    (shared,) = limit.shared
    assert shared.members == {0, 2}
    assert limit.of([0, 2]) == pytest.approx(sum(limit.of([each]) for each in (0, 2)) - limit.start - shared.seconds)
    (file,) = open_pictures([items / "pictures.zip"])
    read = sum(min(3, len(places)) for each, places in file.items.items() if each.startswith("train"))
    assert f"{1000 * read / 40:.0f} pictures of single, dual: about" in capsys.readouterr().err
    least = 1000 * read / 40 * picture_flops(runs / "single" / "image_encoder") / T4_FLOPS
    assert shared.seconds > least
    assert (tmp_path / "cache").exists() == (machine == "here")


def test_estimators_and_runs_on_pictures_are_priced_by_their_training_essays_alone(runs, items, clip, tmp_path):
    lines = picture_recipe(clip)
    means = train(
        member_recipe(load_recipe("tiny", lines), "logistic", [{"kind": "frames"}]), items, tmp_path / "means"
    )
    others = train(
        member_recipe(load_recipe("tiny", [*lines, "data.frames.most=2"]), "logistic", [{"kind": "frames"}]),
        items,
        tmp_path / "others",
    )
    members = [runs / "single", means.path, others.path]
    _, limit = price_members(members, "2h", 1000, "t4", items)
    assert [each.members for each in limit.shared] == [{0, 1}, {2}]
    other, learned = copied(runs / "dual", tmp_path / "other"), copied(runs / "dual", tmp_path / "learned")
    write_json(
        read_json(other / "image_encoder" / "config.json") | {"of": "others"}, other / "image_encoder/config.json"
    )
    trained = load_recipe(learned / "recipe.yaml", ["optimizer.image_rate=0.001"])
    (learned / "recipe.yaml").write_text(trained.to_yaml())
    _, limit = price_members([runs / "dual", other, learned], "2h", 1000, "t4", items)
    assert [each.members for each in limit.shared] == [{0}, {1}, {2}]
    for member in members[:2]:
        moved = copied(member, tmp_path / f"moved {member.name}")
        environment = read_json(moved / "environment.json")
        write_json({**environment, "data": str(tmp_path / "gone")}, moved / "environment.json")
        with pytest.raises(Fb3Error, match=r"give their folder with --data DIR"):
            price_members([moved], "2h")
