"""Runs that train the image encoder with the text's."""

import json
import shutil

import pandas as pd
import pytest
import torch
from transformers import AutoModel

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.frames.frame_references import open_pictures
from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.models.image_tower import IMAGES
from fb3.models.picture_flops import picture_flops
from fb3.pretraining.run_pretraining import pretrain_encoder
from fb3.recipe import load_recipe
from fb3.recipe.member_recipe import member_recipe
from fb3.rehearsal.hidden_rows import public_files, write_hidden_test
from fb3.runs.checkpoint import read_weights
from fb3.submission.inference import infer
from fb3.system.file_names import WEIGHTS
from fb3.training.parameter_groups import parameter_groups
from fb3.training.run import train
from fb3.verification.check import verify
from tests.picture_data import picture_recipe, write_image_encoder, write_picture_items
from tests.training.test_saves import broken_run, ended

STREAMS = {
    "single_stream": "model.frames={kind: single_stream, modality_dropout: 0.2}",
    "dual_stream": "model.frames={kind: dual_stream, layers: 1, cross_layers: 1}",
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_image_encoder("vit", tmp_path_factory.mktemp("vit") / "vit")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_picture_items(tmp_path_factory.mktemp("items") / "data")


def recipe_of(vit, stream, *more):
    return load_recipe("tiny", [*picture_recipe(vit), STREAMS[stream], "optimizer.image_rate=1e-3", *more])


@pytest.mark.parametrize("stream", STREAMS)
def test_a_run_trains_packs_and_predicts_hidden_pictures(stream, vit, items, tmp_path):
    recipe = recipe_of(vit, stream)
    run = train(recipe, items, tmp_path / "run").path
    start, kept = dict(AutoModel.from_pretrained(vit).named_parameters()), read_weights(run / "fold0" / WEIGHTS)
    own = {name.removeprefix(f"{IMAGES}model."): tensor for name, tensor in kept.items() if name.startswith(IMAGES)}
    assert {*own} == {*start}
    moved = [name for name, tensor in own.items() if not torch.equal(tensor, start[name])]
    assert len(moved) > len(own) / 2
    assert verify(run, data=items, essays=6).passed
    bundle = write_bundle([run], tmp_path / "bundle", check=replay(items)).path
    shutil.rmtree(run)
    assert len(infer(bundle, items, tmp_path / "s.csv", strict=True)) == 40
    hidden = tmp_path / "hidden"
    copies = write_hidden_test(items, recipe, public_files(items, recipe.data.files), hidden, 30)
    made = infer(bundle, hidden, tmp_path / "h.csv", strict=True).set_index("id")["label"]
    assert [*made.index] == pd.read_csv(hidden / "test.csv", dtype=str)["id"].tolist()
    assert all(made[one] == made[other] for one, other in copies.items())


def test_a_stopped_fold_goes_on_bit_for_bit(vit, items, tmp_path, monkeypatch):
    recipe = recipe_of(vit, "single_stream", "data.frames.most=2", "train.save_every_steps=2")
    whole = train(recipe, items, tmp_path / "whole", folds=[0])
    broken_run(recipe, items, tmp_path / "run", monkeypatch)
    assert ended(train(recipe, items, tmp_path / "run", folds=[0]).path) == ended(whole.path)


def test_the_image_encoder_has_a_rate_of_its_own(vit, items, tmp_path):
    recipe = recipe_of(vit, "dual_stream", "train.epochs=1", "optimizer.encoder_rate=1e-4")
    run = train(recipe, items, tmp_path / "run", folds=[0]).path
    scorer = build_scorer(recipe, run / "encoder", init="config")
    groups = {group["name"]: group for group in parameter_groups(scorer, recipe.optimizer)}
    features = [{"kind": "embeddings", "encoder": str(run)}]
    with pytest.raises(Fb3Error, match=r"trained its image encoder too; give a run without optimizer\.image_rate"):
        train(member_recipe(recipe, "logistic", features), items, tmp_path / "member", folds=[0])
    assert {groups[name]["lr"] for name in ("images.decay", "images.plain")} == {1e-3}
    assert groups["images.plain"]["weight_decay"] == 0
    found = sum(len(group["params"]) for name, group in groups.items() if name.startswith("images"))
    assert found == sum(1 for name, _ in scorer.named_parameters() if name.startswith(IMAGES))


def test_a_pretrained_encoder_goes_on_with_a_trained_image_encoder(vit, items, tmp_path):
    pretrain = "pretrain={epochs: 1, length: 16, objectives: [{kind: mlm}, {kind: mfm}]}"
    encoder = pretrain_encoder(recipe_of(vit, "single_stream", pretrain), items, tmp_path / "encoder")
    more = [f"model.backbone={encoder}", "train.epochs=1", "optimizer.image_rate=1e-9"]
    run = train(recipe_of(vit, "single_stream", *more), items, tmp_path / "run", folds=[0]).path
    kept, start = read_weights(run / "fold0" / WEIGHTS), read_weights(encoder / "frames.safetensors")
    torch.testing.assert_close(kept["frames.mean"], start["mean"])


def test_frozen_and_trained_image_encoders_share_a_bundle(vit, items, tmp_path):
    trained = train(recipe_of(vit, "dual_stream", "train.epochs=1"), items, tmp_path / "trained").path
    frozen = recipe_of(vit, "dual_stream", "train.epochs=1", "optimizer.image_rate=null")
    bundle = write_bundle([train(frozen, items, tmp_path / "frozen").path, trained], tmp_path / "bundle").path
    assert len(infer(bundle, items, tmp_path / "s.csv", strict=True)) == 40
    (file,) = open_pictures([items / "pictures.zip"])
    read = sum(min(3, len(places)) for each, places in file.items.items() if each.startswith("test"))
    flops = json.loads((tmp_path / "s.report.json").read_text())["flops"]
    assert flops["trained"] - flops["frozen"] == pytest.approx(read * picture_flops(bundle / "image_encoder"))


def test_a_rate_without_an_image_encoder_is_refused(items, vit, tmp_path):
    lines = [line for line in picture_recipe(vit) if "frames" not in line]
    with pytest.raises(Fb3Error, match=r"optimizer\.image_rate: there is no image encoder to train"):
        train(load_recipe("tiny", [*lines, "optimizer.image_rate=1e-3"]), items, tmp_path / "run")
