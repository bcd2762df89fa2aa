import json
import shutil
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from fb3.data.batches import collate
from fb3.data.pretraining_texts import PretrainingTexts
from fb3.errors import Fb3Error, Stopped
from fb3.pretraining.best_encoder import BestEncoder
from fb3.pretraining.corpus import read_corpus
from fb3.pretraining.pretraining_model import PretrainingModel
from fb3.pretraining.pretraining_recipe import pretraining_recipe
from fb3.pretraining.run_pretraining import pretrain_encoder
from fb3.recipe import load_recipe
from fb3.runs.provenance import read_provenance
from fb3.system.files import read_json
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import copied
from tests.pretraining.stopping import stop_after
from tests.training.test_distributed import call, finish, launcher

SMALL = ["train.precision=fp32", "predict.precision=fp32", "pretrain.length=48", "pretrain.batch_size=8"]
SMALL += [
    "pretrain.epochs=2",
    "pretrain.holdout=0.2",
    "pretrain.encoder_rate=2e-3",
    "pretrain.head_rate=5e-3",
    "data.sample=16",
]
FILES = {"config.json", "environment.json", "lock", "log.jsonl", "model.safetensors", "pretraining.json", "recipe.yaml"}


PLAIN_FORWARD = PretrainingModel.forward


def recipe_of(*lines):
    return load_recipe("tiny", [*SMALL, *lines])


def weights(folder):
    return load_file(folder / "model.safetensors")


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def encoder(competition, tmp_path_factory):
    """An encoder pretrained on a competition's essays, with a token for line breaks."""
    out = tmp_path_factory.mktemp("pretrained") / "encoder"
    return pretrain_encoder(recipe_of("data.text.newlines=true"), competition, out)


def test_the_folder_is_a_backbone_without_heads(encoder):
    assert {path.name for path in encoder.iterdir()} == FILES | {"tokenizer.json", "tokenizer_config.json"}
    kept, model = weights(encoder), AutoModel.from_pretrained(encoder)
    assert {name for name, _ in model.named_parameters()} == {*kept}
    assert AutoTokenizer.from_pretrained(encoder).convert_tokens_to_ids("[BR]") == model.config.vocab_size - 1
    assert verify(encoder).passed
    said = read_provenance(encoder)
    assert len(said["texts"]) + len(said["held_out"]) == 16
    assert said["after"]["mlm"] < said["before"]["mlm"]
    assert read_json(encoder / "environment.json")["versions"]["torch"] == version("torch")


def test_the_exported_encoder_gives_the_states_of_the_pretrained_one(competition, tmp_path, monkeypatch):
    seen = {}

    def keep(best, step, evaluate=BestEncoder.evaluate):
        evaluate(best, step)
        if best.since == 0:
            batch = collate(best.windows, np.arange(4), np.zeros((99, 0)))
            step.scorer.eval()
            with torch.no_grad():
                states = step.scorer.encoder(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state
            step.scorer.train()
            seen.update(batch=batch, states=states)

    monkeypatch.setattr(BestEncoder, "evaluate", keep)
    out = pretrain_encoder(recipe_of("pretrain.epochs=1"), competition, tmp_path / "encoder")
    batch = seen["batch"]
    with torch.no_grad():
        model = AutoModel.from_pretrained(out).eval()
        again = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    real = batch["attention_mask"].bool()
    assert (again - seen["states"])[real].abs().max() < 1e-6


def test_a_run_trains_on_it_and_says_which_validation_texts_it_has_seen(encoder, competition, tmp_path):
    train_file = pd.read_csv(competition / "train.csv", dtype=str)
    train_file.loc[train_file.index % 2 == 0, "full_text"] += " Something that no encoder has seen."
    (tmp_path / "data").mkdir()
    train_file.to_csv(tmp_path / "data" / "train.csv", index=False)
    settings = ["train.precision=fp32", "train.epochs=1", "data.text.newlines=true", "data.max_length=64"]
    recipe = load_recipe("tiny", [*settings, f"model.backbone={encoder}"])
    run = train(recipe, tmp_path / "data", tmp_path / "run", folds=[0]).path
    (said,) = events(run, "pretrained")
    known = {*read_provenance(encoder)["texts"], *read_provenance(encoder)["held_out"]}
    assert 0 < said["seen"] < said["texts"] <= 30
    assert said["seen"] <= len(known)
    start = weights(encoder)
    trained = load_file(run / "fold0" / "model.safetensors")
    moved = [(trained[f"encoder.{name}"] - start[name]).abs().max() for name in start]
    assert max(moved) < 0.1  # a few steps from the pretrained weights, not from random ones
    assert len(weights(encoder)["embeddings.word_embeddings.weight"]) == len(
        trained["encoder.embeddings.word_embeddings.weight"]
    )


def test_a_run_takes_the_characters_that_its_pretraining_added(competition, tiny_bert, tmp_path):
    data = copied(competition, tmp_path / "data")
    table = pd.read_csv(data / "train.csv", dtype=str)
    table.assign(full_text=table["full_text"] + " 语法").to_csv(data / "train.csv", index=False)
    lines = ["train.epochs=1", "pretrain.epochs=1", "data.max_length=64", "data.text.new_tokens=3"]
    encoder = pretrain_encoder(recipe_of(*lines, f"model.backbone={tiny_bert}"), data, tmp_path / "encoder")
    run = train(recipe_of(*lines, f"model.backbone={encoder}"), data, tmp_path / "run", folds=[0]).path
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (encoder, run / "encoder")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[1].tokenize("语法") == ["语", "法"]
    with pytest.raises(Fb3Error, match="knows all"):
        train(recipe_of(*lines, f"model.backbone={tiny_bert}"), competition, tmp_path / "other")


@pytest.mark.parametrize("objectives", ["[{kind: mlm}]", "[{kind: rtd}, {kind: order}]"])
def test_a_stopped_pretraining_ends_as_an_uninterrupted_one_bit_by_bit(competition, tmp_path, monkeypatch, objectives):
    lines = [f"pretrain.objectives={objectives}", "pretrain.accumulation=2", "train.save_every_steps=3"]
    whole = pretrain_encoder(recipe_of(*lines), competition, tmp_path / "whole")
    stop_after(monkeypatch, 5)
    with pytest.raises(Stopped, match=r"SIGTERM: pretraining is saved after step .* the same command goes on"):
        pretrain_encoder(recipe_of(*lines), competition, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    monkeypatch.undo()
    with pytest.raises(Fb3Error, match=r"begun with another recipe \(pretrain.masking.share"):
        pretrain_encoder(recipe_of(*lines, "pretrain.masking.share=0.2"), competition, tmp_path / "parts")
    parts = pretrain_encoder(recipe_of(*lines), competition, tmp_path / "parts")
    one, two = weights(whole), weights(parts)
    assert all((one[name] == two[name]).all() for name in one)
    ours, theirs = (
        [(e["step"], e["score"], e["columns"]) for e in events(folder, "evaluation")] for folder in (whole, parts)
    )
    assert ours == theirs
    assert read_provenance(parts)["before"] == read_provenance(whole)["before"]
    with pytest.raises(Fb3Error, match="holds a pretrained encoder already"):
        pretrain_encoder(recipe_of(*lines), competition, tmp_path / "parts")


def test_memory_that_runs_out_splits_batches_and_changes_no_result(competition, tmp_path, monkeypatch):
    lines = ["pretrain.epochs=1", "pretrain.dropout=0", "pretrain.attention_dropout=0"]
    whole = pretrain_encoder(recipe_of(*lines, "pretrain.masking.random=0"), competition, tmp_path / "whole")

    def forward(model, batch, plain=PLAIN_FORWARD):
        if model.training and len(batch["group"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, batch)

    def draw(texts, rows, targets=None, plain=PretrainingTexts.draw):
        """Hides the same tokens of a window whenever it is drawn: a repeated step would draw others."""
        parts = []
        for row in rows:
            texts.rng.bit_generator.state = np.random.default_rng([int(row), 5]).bit_generator.state
            parts.append(plain(texts, np.array([row]), targets))
        longest = max(part[1]["labels"].shape[1] for part in parts)
        labels = [
            np.pad(p[1]["labels"], ((0, 0), (0, longest - p[1]["labels"].shape[1])), constant_values=-100)
            for p in parts
        ]
        more = {"labels": np.concatenate(labels), "group": np.concatenate([part[1]["group"] for part in parts])}
        return [part[0][0] for part in parts], more

    monkeypatch.setattr(PretrainingModel, "forward", forward)
    with pytest.raises(Fb3Error, match=r"the loss needs whole batches; try a smaller pretrain\.batch_size"):
        pretrain_encoder(
            recipe_of("pretrain.epochs=1", "pretrain.objectives=[{kind: simcse}]"), competition, tmp_path / "simcse"
        )
    monkeypatch.setattr(PretrainingModel, "forward", PLAIN_FORWARD)
    monkeypatch.setattr(PretrainingTexts, "draw", draw)
    same = pretrain_encoder(recipe_of(*lines), competition, tmp_path / "same")
    monkeypatch.setattr(PretrainingModel, "forward", forward)
    split = pretrain_encoder(recipe_of(*lines), competition, tmp_path / "split")
    one, two, other = weights(same), weights(split), weights(whole)
    assert events(tmp_path / "split", "out_of_memory")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert any(not torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_it_ends_early_and_keeps_the_best(competition, tmp_path):
    lines = ["pretrain.encoder_rate=1.0", "pretrain.head_rate=1.0", "pretrain.epochs=6", "pretrain.patience=2"]
    out = pretrain_encoder(recipe_of(*lines, "pretrain.warmup_share=0"), competition, tmp_path / "encoder")
    found = events(out, "evaluation")
    best = min(found, key=lambda each: each["score"])
    assert len(found) < 7
    assert found.index(best) == len(found) - 3
    assert read_provenance(out)["after"]["loss"] == best["score"]


def test_each_objective_lowers_its_loss_together_with_the_others(competition, tmp_path):
    objectives = "[{kind: mlm}, {kind: simcse, weight: 0.5}, {kind: rtd, discriminator_weight: 5}, {kind: order}]"
    lines = [f"pretrain.objectives={objectives}", "pretrain.masking.kind=ngrams"]
    said = read_provenance(pretrain_encoder(recipe_of(*lines), competition, tmp_path / "encoder"))
    before, after = said["before"], said["after"]
    assert {"mlm", "mlm_accuracy", "perplexity", "simcse", "alignment", "uniformity"} <= {*after}
    assert {"generator", "generator_accuracy", "rtd", "rtd_found", "order", "order_accuracy"} <= {*after}
    assert after["loss"] < before["loss"]
    assert after["mlm"] < before["mlm"]
    assert after["perplexity"] == pytest.approx(np.exp(after["mlm"]))


def test_texts_are_read_once_and_held_out_whole(competition, tmp_path):
    essays = pd.read_csv(competition / "train.csv", dtype=str)
    more = pd.DataFrame({"full_text": [essays["full_text"][0], "A new text.", "  ", "A new  text."]})
    more.to_csv(tmp_path / "more.csv", index=False)
    recipe = pretraining_recipe(load_recipe("tiny", ["pretrain.holdout=0.2"]))
    corpus = read_corpus(recipe, competition, [tmp_path / "more.csv"])
    assert len(corpus.table) == 61
    assert len(corpus.split.valid_rows) == 12
    assert {*corpus.split.train_rows} | {*corpus.split.valid_rows} == {*range(61)}
    assert len({*corpus.hashes}) == 61
    assert {*corpus.digests} == {"train_sha256", "texts1_sha256"}
    assert (corpus.hashes == read_corpus(recipe, competition, [tmp_path / "more.csv"]).hashes).all()


def test_essays_on_one_prompt_are_one_group(competition, tmp_path):
    essays = pd.read_csv(competition / "train.csv", dtype=str)
    essays["prompt"] = np.where(essays.index % 2, "school", "family")
    essays.to_csv(tmp_path / "train.csv", index=False)
    lines = ["folds.group_column=prompt", "pretrain.objectives=[{kind: simcse}]"]
    recipe = pretraining_recipe(load_recipe("tiny", lines))
    assert len(set(read_corpus(recipe, tmp_path, []).groups)) == 2
    essays.assign(prompt="one").to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(Fb3Error, match="all texts have one group, so simcse has nothing to tell apart"):
        read_corpus(recipe, tmp_path, [])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["pretrain.objectives=[{kind: mlm}, {kind: mlm}]"], "mlm stands 2 times"),
        (["pretrain.objectives=[]"], "at least 1"),
        (
            ["pretrain.objectives=[{kind: simcse}]", "pretrain.dropout=0", "pretrain.attention_dropout=0"],
            "simcse without dropout has two equal vectors and collapses",
        ),
        (["pretrain.objectives=[{kind: simcse}]", "pretrain.batch_size=1"], "simcse compares the texts of a batch"),
        (["pretrain.masking={mask: 0.9, random: 0.2}"], "are more than 1 together"),
        (["pretrain.epoch=3"], "did you mean 'pretrain.epochs'"),
        (
            ["pretrain.masking.kind=word"],
            "pretrain.masking.kind: Input should be 'tokens', 'words', 'ngrams' or 'spans'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(lines, words):
    with pytest.raises(Fb3Error, match=words.replace("[", r"\[")):
        load_recipe("tiny", lines)


def test_verify_finds_a_changed_file(encoder, tmp_path):
    broken = copied(encoder, tmp_path / "broken")
    content = read_json(broken / "config.json")
    (broken / "config.json").write_text(json.dumps({**content, "hidden_act": "relu"}))
    report = verify(broken)
    assert not report.passed
    assert "config.json: not the file that pretraining.json describes" in report.text()
    shutil.rmtree(broken)


def test_two_processes_learn_together(competition, tmp_path):
    """Each hides other tokens, so that losses are alike and not equal; a wrong scale would be a factor of two."""
    objectives = "pretrain.objectives=[{kind: mlm}, {kind: rtd, discriminator_weight: 1}, {kind: order}]"
    options = [*SMALL, objectives, "pretrain.epochs=1", "train.log_every_steps=1", "pretrain.batch_size=7"]
    program = ["-m", "fb3", "pretrain", "tiny", "--data", "{data}", "--out", "{out}"]
    finish(call(launcher(), competition, tmp_path / "two", program=program, overrides=options))
    pretrain_encoder(load_recipe("tiny", options), competition, tmp_path / "one")
    assert read_json(tmp_path / "two" / "environment.json")["processes"] == 2
    assert verify(tmp_path / "two").passed
    two, one = ([event["loss"] for event in events(tmp_path / name, "step")] for name in ("two", "one"))
    assert len(two) == len(one)
    assert np.mean(two) == pytest.approx(np.mean(one), rel=0.1)


def test_simcse_compares_the_texts_of_all_processes(competition, tmp_path):
    """Almost no dropout and no masking, so that two processes see what one sees; the last batch has a text too few."""
    objectives = "pretrain.objectives=[{kind: simcse, head: none, temperature: 1}]"
    lines = [objectives, "pretrain.dropout=1e-7", "pretrain.attention_dropout=0", "pretrain.epochs=2"]
    options = [*SMALL, *lines, "train.log_every_steps=1", "pretrain.batch_size=7"]
    program = ["-m", "fb3", "pretrain", "tiny", "--data", "{data}", "--out", "{out}"]
    finish(call(launcher(), competition, tmp_path / "two", program=program, overrides=options))
    pretrain_encoder(load_recipe("tiny", options), competition, tmp_path / "one")
    two, one = (events(tmp_path / name, "step") for name in ("two", "one"))
    for shared, alone in zip(two, one, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=2e-2)
