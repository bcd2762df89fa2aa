"""Static word vectors as a backbone: `fb3 words`, then a run of their own and a second tower, trained and packed."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fb3.bundles.packing import write_bundle
from fb3.cli import app
from fb3.data.tokenizer import load_tokenizer
from fb3.errors import Fb3Error
from fb3.models.backbone import export_encoder, pretrained_encoder
from fb3.models.flops import forward_flops
from fb3.models.layer_stack import depth_of_parameters, longest_input
from fb3.models.word_encoder import build_word_encoder
from fb3.recipe import load_recipe
from fb3.recipe.model import ModelSettings
from fb3.runs.checkpoint import load_fold
from fb3.submission.inference import infer
from fb3.system.files import read_json
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import TINY

WIDTH = 12


@pytest.fixture(scope="module")
def vectors(tmp_path_factory, texts):
    """A file as word2vec writes it, of the words of some texts in small letters."""
    words = sorted({word for text in texts for word in text.lower().replace(".", " .").split()})
    numbers = np.random.default_rng(1).normal(size=(len(words), WIDTH)).round(6)
    lines = [f"{w} {' '.join(map(str, row))} \n" for w, row in zip(words, numbers.tolist(), strict=True)]
    path = tmp_path_factory.mktemp("vectors") / "v.txt"
    path.write_text(f"{len(words)} {WIDTH}\n{''.join(lines)}")
    return path


@pytest.fixture(scope="module")
def words(vectors, competition, tmp_path_factory):
    """The encoder folder that `fb3 words` makes of the file."""
    out = tmp_path_factory.mktemp("words") / "words"
    result = CliRunner().invoke(app, ["words", str(vectors), "--data", str(competition), "--out", str(out)])
    assert result.exit_code == 0, result.exception
    return out


def test_states_are_the_rows_of_the_file(words, vectors, tmp_path):
    export_encoder(ModelSettings(backbone=str(words)), tmp_path)
    encoder = pretrained_encoder(ModelSettings(backbone=str(words)), tmp_path).eval()
    rows = {line.split()[0]: line.split()[1:] for line in vectors.read_text().splitlines()[1:]}
    tokenizer, pad = load_tokenizer(tmp_path)
    first, second = list(rows)[5], list(rows)[9]
    ids = [*tokenizer.encode(f"{first} {second.upper()} zzzz").ids, pad]
    states = encoder(torch.tensor([ids]), torch.tensor([[1, 1, 1, 0]])).last_hidden_state[0]
    np.testing.assert_array_equal(states[0].detach(), np.array(rows[first], np.float32))
    np.testing.assert_array_equal(states[1].detach(), np.array(rows[second], np.float32))
    assert ids[2] == tokenizer.token_to_id("[UNK]")
    np.testing.assert_allclose(states[2].detach(), encoder.embeddings.weight[2:].detach().mean(0), atol=1e-6)
    assert not states[3].any()
    assert longest_input(encoder) is None
    assert depth_of_parameters(encoder) == ({"embeddings.weight": 0}, 1)
    assert forward_flops(read_json(tmp_path / "config.json"), np.array([10, 20])).min() > 0
    assert {path.name for path in words.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "word_vectors.json",
    }
    assert read_json(words / "word_vectors.json")["known_share"] > 0.5


@pytest.mark.parametrize(
    "changes",
    [
        ["model.pooling.kind=lstm_tokens", "model.pooling.width=8", "model.dropout=0.1"],
        ["model.pooling.kind=cnn", "model.freeze_embeddings=true", "model.pooling.width=8"],
        ["model.pooling.kind=mean", "optimizer.layer_decay=0.9", "data.text.newlines=true"],
    ],
    ids=["lstm", "cnn frozen", "mean"],
)
def test_a_run_of_word_vectors_trains_packs_and_predicts(changes, words, competition, tmp_path):
    recipe = load_recipe("tiny", [*TINY, f"model.backbone={words}", *changes])
    run = train(recipe, competition, tmp_path / "run", folds=[0]).path
    table = load_file(run / "fold0" / "model.safetensors")["encoder.embeddings.weight"]
    start = load_file(words / "model.safetensors")["embeddings.weight"]
    assert torch.equal(table[: len(start)], start) == ("frozen" in str(changes) or "freeze" in str(changes))
    bundle = write_bundle([run], tmp_path / "bundle").path  # its parity predicts again
    test = pd.read_csv(competition / "test.csv")
    test.loc[0, "full_text"] = "\u200b"  # no word at all
    test.loc[1, "full_text"] = "qqq zzz" * 3  # unknown words alone
    test.to_csv(tmp_path / "test.csv", index=False)
    infer(bundle, competition, tmp_path / "submission.csv", test=tmp_path / "test.csv")
    submission = pd.read_csv(tmp_path / "submission.csv")
    assert np.isfinite(submission.iloc[:, 1:].to_numpy()).all()
    assert submission.iloc[2:, 1].nunique() > 1
    assert verify(run, competition, essays=5).passed


@pytest.mark.parametrize(("pooling", "frozen"), [("lstm_tokens", "second"), ("cnn", "none")])
def test_word_vectors_are_a_second_tower(pooling, frozen, words, competition, tmp_path):
    changes = [
        f"model.stitch.backbone={words}",
        f"model.stitch.pooling.kind={pooling}",
        f"model.stitch.frozen={frozen}",
    ]
    recipe = load_recipe("tiny", [*TINY, *changes, "optimizer.layer_decay=0.9"])
    run = train(recipe, competition, tmp_path / "run", folds=[0]).path
    scorer = load_fold(recipe, run / "encoder", run / "fold0")
    start = load_file(words / "model.safetensors")["embeddings.weight"]
    assert torch.equal(scorer.second.encoder.embeddings.weight, start) == (frozen == "second")
    bundle = write_bundle([run], tmp_path / "bundle").path
    infer(bundle, competition, tmp_path / "submission.csv")
    assert np.isfinite(pd.read_csv(tmp_path / "submission.csv").iloc[:, 1:].to_numpy()).all()


def test_trained_vectors_are_the_same_each_time_and_know_what_further_texts_hold(competition, tmp_path):
    further = tmp_path / "more.csv"
    pd.DataFrame({"text_id": ["a", "b"], "full_text": ["Zyx abcd Zyx", "zyx abcd"]}).to_csv(further, index=False)
    made = [
        build_word_encoder(load_recipe("tiny"), competition, tmp_path / name, further=[further], size=8)
        for name in ("one", "two")
    ]
    assert made[0] == made[1]
    tables = [load_file(tmp_path / name / "model.safetensors")["embeddings.weight"] for name in ("one", "two")]
    assert torch.equal(*tables)
    ids = {word: load_tokenizer(tmp_path / "one")[0].token_to_id(word) for word in ("Zyx", "zyx", "abcd", "ABCD")}
    assert None not in ids.values()
    assert torch.equal(tables[0][ids["abcd"]], tables[0][ids["ABCD"]])  # never seen in capitals
    with pytest.raises(Fb3Error, match=r"one: exists; choose another --out"):
        build_word_encoder(load_recipe("tiny"), competition, tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.pooling.kind=cls", "puts none before a text"),
        ("model.pooling.kind=weighted_layer", "take a kind that reads no layers, such as lstm_tokens or cnn"),
        ("model.freeze_layers=1", "has 0 layers"),
        ("model.mixout=0.1", "has no linear layers"),
        ("model.attention_dropout=0.1", "has no such dropout"),
    ],
)
def test_settings_of_layers_are_refused(change, message, words, competition, tmp_path):
    recipe = load_recipe("tiny", [*TINY, f"model.backbone={words}", change])
    with pytest.raises(Fb3Error, match=message):
        train(recipe, competition, tmp_path / "run", folds=[0])


def test_vectors_of_another_language_are_refused(competition, tmp_path):
    (tmp_path / "v.txt").write_text("слово 1 2\nещё 3 4\n")
    with pytest.raises(Fb3Error, match="none of its 2 words is in the texts"):
        build_word_encoder(load_recipe("tiny"), competition, tmp_path / "out", vectors=tmp_path / "v.txt")


@pytest.mark.parametrize("arguments", [["v.txt", "--train"], []])
def test_the_command_wants_a_file_or_a_training(arguments):
    assert "give a file of vectors, or --train" in str(CliRunner().invoke(app, ["words", *arguments]).exception)
