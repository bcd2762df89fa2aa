"""Pretraining on items: frames beside their texts, read and learned from."""

import math
import shutil
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fb3.data.batches import collate
from fb3.data.frames.frame_files import open_frames, write_frames
from fb3.data.pretraining_texts import cut_texts
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import item_frames
from fb3.errors import Fb3Error, Stopped
from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.models.pretraining_heads import HiddenFrames
from fb3.pretraining.best_encoder import BestEncoder
from fb3.pretraining.contrast import contrast
from fb3.pretraining.corpus import read_corpus
from fb3.pretraining.encodings import Encodings
from fb3.pretraining.objectives import build_objectives
from fb3.pretraining.pretraining_model import PretrainingModel
from fb3.pretraining.pretraining_recipe import pretraining_recipe
from fb3.pretraining.run_pretraining import pretrain_encoder
from fb3.recipe import load_recipe
from fb3.recipe.pretraining import PretrainingSettings
from fb3.runs.checkpoint import weights_of
from fb3.runs.provenance import read_provenance
from fb3.training import fold
from fb3.training.run import train
from fb3.verification.check import verify
from tests.frames_data import RECIPE, write_items
from tests.models.sized import sized
from tests.models.test_frame_scorers import FAMILIES, WIDTH, batch_of
from tests.pretraining.stopping import stop_after

MORE = ["pretrain={epochs: 2, length: 16, batch_size: 8, holdout: 0.2, encoder_rate: 2e-3, head_rate: 5e-3}"]
ALL = ["pretrain.objectives=[{kind: mlm}, {kind: mfm}, {kind: itm}, {kind: itc, width: 16}]"]


def recipe_of(*further):
    return load_recipe("tiny", [*RECIPE, *MORE, *further])


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items"))


def embeddings_of(encoder):
    words = encoder.get_input_embeddings().weight
    return FrameEmbeddings(WIDTH, words.shape[1], 6)


def model_of(*objectives, family="bert"):
    encoder = sized(family)
    frames, settings = embeddings_of(encoder), PretrainingSettings(objectives=objectives)
    model = PretrainingModel(encoder, build_objectives(settings.objectives, encoder, frames), frames)
    with torch.no_grad():
        for parameter in model.parameters():  # every part shows
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def nearest(one, two):
    return float(F.cosine_similarity(one, two, dim=0))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_beside_frames_are_the_ones_of_a_pass_packed_by_hand(family):
    encoder, batch = sized(family).eval(), batch_of([7, 2, 4, 1], [3, 0, 6, 2])
    frames = embeddings_of(encoder)
    encodings = Encodings(encoder, batch, frames)
    words, shown = encoder.get_input_embeddings()(batch["input_ids"]), frames(batch["frames"])
    text, beside = encodings.beside(batch["input_ids"], batch["attention_mask"], shown, batch["frame_mask"])
    assert text.shape[:2] == batch["input_ids"].shape
    assert beside.shape[:2] == batch["frame_mask"].shape
    for row, (tokens, count) in enumerate(((7, 3), (2, 0), (4, 6), (1, 2))):
        packed = torch.cat([words[row, :1], shown[row, :count], words[row, 1:tokens]])[None]
        states = encoder(inputs_embeds=packed, attention_mask=torch.ones(packed.shape[:2])).last_hidden_state[0]
        expected = torch.cat([states[:1], states[count + 1 :]])
        torch.testing.assert_close(text[row, :tokens], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(beside[row, :count], states[1 : count + 1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encodings.hidden, text)


def test_items_of_further_tables_have_the_frames_that_a_file_knows(items, tmp_path):
    known = pd.read_csv(items / "test.csv").head(10)
    titles = [f"a new title of number {n}" for n in range(10)]
    known.assign(title=titles).to_csv(tmp_path / "known.csv", index=False)
    further = [*titles[:2], *(f"another of number {n}" for n in range(8))]
    known[["title"]].assign(title=further).to_csv(tmp_path / "texts.csv", index=False)
    corpus = read_corpus(pretraining_recipe(recipe_of()), items, [tmp_path / "known.csv", tmp_path / "texts.csv"])
    frames, stored = item_frames(corpus.table, recipe_of().data), open_frames(items / "frames.npz")
    by_title = dict(zip(corpus.table["title"], frames.references, strict=True))
    assert by_title["a new title of number 3"].read().tobytes() == stored.read("test3").tobytes()
    assert by_title["another of number 3"].count == 0
    assert "frames.npz_sha256" in corpus.digests
    # Each item with frames is there, and no text is both trained on and held out.
    assert np.count_nonzero(frames.counts) == 56 + 9
    assert corpus.table["title"].value_counts().max() > 1
    seen, held = (set(corpus.hashes[rows]) for rows in corpus.split[1:])
    assert not seen & held
    assert len(set(corpus.groups)) == corpus.table["title"].nunique()
    write_frames(tmp_path / "frames.npz", ["other"], [np.ones((2, 3))])
    shutil.copy(items / "train.csv", tmp_path)
    with pytest.raises(Fb3Error, match="hold no frames of any item"):
        read_corpus(pretraining_recipe(recipe_of()), tmp_path, [])


def test_every_window_of_a_text_has_the_items_frames(items, tiny_bert):
    recipe = pretraining_recipe(recipe_of("pretrain.length=8", "data.frames.most=2"))
    table = read_corpus(recipe, items, []).table.head(6)
    frames, texts = item_frames(table, recipe.data), [f"{title} " * 3 for title in table["title"]]
    made = cut_texts(texts, np.arange(6), *load_tokenizer(tiny_bert), recipe.data, recipe.pretrain, 1, frames=frames)
    rows, targets = np.arange(len(made.rows)), np.zeros((len(made.rows), 0))
    assert len(rows) > 12
    batch = collate(made, rows, targets)
    assert batch["frame_mask"].sum(1).tolist() == [frames.counts[owner] for owner in made.texts]
    state = made.state_dict()
    drawn = [collate(made, rows, targets)["frames"] for _ in range(2)]
    made.load_state_dict(state)
    assert (collate(made, rows, targets)["frames"] == drawn[0]).all()
    assert (drawn[0] != drawn[1]).any()


def test_two_streams_read_the_texts_and_say_so(capsys):
    assert pretraining_recipe(recipe_of("model.frames={kind: dual_stream}")).data.frames is None
    assert "model.frames.kind=dual_stream: its encoder reads texts alone" in capsys.readouterr().err
    assert pretraining_recipe(recipe_of()).data.frames.most == 4


def test_a_run_starts_from_the_encoder_and_its_frames(items, tmp_path, monkeypatch, capsys):
    kept = {}

    def keep(best, step, evaluate=BestEncoder.evaluate):
        evaluate(best, step)
        if best.since == 0:
            kept["model"] = deepcopy(step.scorer).eval()

    monkeypatch.setattr(BestEncoder, "evaluate", keep)
    out = pretrain_encoder(recipe_of(*ALL), items, tmp_path / "encoder")
    assert {path.name for path in out.glob("*.safetensors")} == {"model.safetensors", "frames.safetensors"}
    assert load_file(out / "frames.safetensors").keys() == dict(weights_of(kept["model"].frames)).keys()
    assert verify(out).passed

    def compare(scorer, recipe, folder, batch):
        model = kept.pop("model")
        encodings = Encodings(model.encoder, batch, model.frames)
        inputs = batch["input_ids"], batch["attention_mask"], encodings.embedded, batch["frame_mask"]
        states = torch.cat(encodings.beside(*inputs), 1)
        real = torch.cat([batch["attention_mask"], batch["frame_mask"]], 1)[..., None]
        pooled = scorer.eval()(batch).pooled
        scorer.train()
        assert (pooled - (states * real).sum(1) / real.sum(1)).abs().max() < 1e-6

    monkeypatch.setattr(fold, "check_reload", torch.no_grad()(compare))
    lines = ["train.epochs=1", "model.pooling.kind=mean", "data.frames.most=6"]
    run = train(recipe_of(f"model.backbone={out}", *lines), items, tmp_path / "run", folds=[0]).path
    assert not kept
    assert "frames start from its embeddings, standardised as in its pretraining" in capsys.readouterr().err
    assert verify(run, essays=4).passed
    monkeypatch.setattr(fold, "check_reload", lambda *given: None)
    dual = ["model.frames={kind: dual_stream, layers: 1, cross_layers: 1}", "train.epochs=1"]
    train(recipe_of(f"model.backbone={out}", *dual), items, tmp_path / "dual", folds=[0])
    assert "are for a single stream; the frames' layers of this run start anew" in capsys.readouterr().err
    stored, trained = load_file(out / "frames.safetensors"), load_file(run / "fold0" / "model.safetensors")
    assert (trained["frames.mean"] == stored["mean"]).all()
    further = pretrain_encoder(
        recipe_of(f"model.backbone={out}", "pretrain.epochs=1"), write_items(tmp_path / "more", seed=4), tmp_path / "e2"
    )
    assert (load_file(further / "frames.safetensors")["factor"] == stored["factor"]).all()
    narrow = shutil.copytree(items, tmp_path / "narrow")
    ids = list(open_frames(items / "frames.npz").ids)
    write_frames(narrow / "frames.npz", ids, [np.ones((2, 7))] * len(ids))
    with pytest.raises(Fb3Error, match=r"frames of 7 numbers, and model\.backbone=.* knows 12; take the files"):
        train(recipe_of(f"model.backbone={out}"), narrow, tmp_path / "narrow_run")
    (out / "frames.safetensors").unlink()
    assert not verify(out).passed
    with pytest.raises(Fb3Error, match=r"frames\.safetensors is missing, and config\.json names frames"):
        train(recipe_of(f"model.backbone={out}"), items, tmp_path / "lost")


def test_hidden_frames_are_a_share_of_the_real_ones():
    counts = torch.tensor([0, 1, 2, 3, 20, 40]).repeat(500)
    mask = (torch.arange(40) < counts[:, None]).long()
    hidden = HiddenFrames(8, 0.15).draw(mask)
    assert not (hidden & (mask == 0)).any()
    found = hidden.sum(1).reshape(500, 6).float()
    assert found.min(0).values.tolist() == [0, 0, 1, 1, 3, 6]
    assert found.max(0).values.tolist() == [0, 1, 1, 1, 3, 6]
    assert found.mean(0)[1].item() == pytest.approx(0.15, abs=0.05)
    assert hidden.reshape(500, 6, 40)[:, 4].float().mean(0)[:20].min() > 0.08  # each place has its chance


def test_a_contrast_is_its_formula():
    one, two, own = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([1, 0, 4])
    alike = torch.zeros(3, 5, dtype=torch.bool)
    alike[0, 2] = alike[2] = True
    found = contrast(one, two, own, alike, 0.1)
    for row, left in enumerate(([0, 1, 3, 4], range(5), [4])):
        cosines = {place: nearest(one[row], two[place]) / 0.1 for place in left}
        expected = math.log(sum(map(math.exp, cosines.values()))) - cosines[int(own[row])]
        assert float(found.losses[row]) == pytest.approx(expected, abs=1e-5)
        assert bool(found.right[row]) == (max(cosines, key=cosines.get) == own[row])
    assert found.open.tolist() == [True, True, False]


@torch.no_grad()
def test_mfm_tells_a_hidden_frame_from_the_other_pictures_of_the_batch():
    model, batch = model_of({"kind": "mfm", "share": 0.3}).eval(), batch_of([5, 3, 4, 6], [4, 0, 6, 4])
    batch["frames"][3, :4] = batch["frames"][0, [2, 1, 3, 0]]  # the same pictures, such as another window's
    model.frames.fit(np.random.default_rng(0).normal(0.5, 2, (50, WIDTH)))
    mfm = model.objectives["mfm"]
    torch.manual_seed(3)
    encodings = Encodings(model.encoder, batch, model.frames, mfm.hides)
    learned = mfm(encodings)
    standard = model.frames.standardised(batch["frames"])
    real = [(row, place) for row, count in enumerate((4, 0, 6, 4)) for place in range(count)]
    losses = {row: [] for row in range(4)}
    for row, place in encodings.hidden_frames.nonzero().tolist():
        assert (row, place) in real
        guess, truth = mfm.head(encodings.both[1][row, place]), standard[row, place]
        others = [standard[each] for each in real if nearest(standard[each], truth) < 0.999]
        cosines = [nearest(guess, each) / mfm.temperature for each in (truth, *others)]
        losses[row].append(math.log(sum(map(math.exp, cosines))) - cosines[0])
    assert [len(each) for each in losses.values()].count(0) == 1
    assert float(learned.loss) == pytest.approx(sum(np.mean(each) for each in losses.values() if each) / 4, abs=1e-4)
    assert float(learned.measures["mfm"][1]) == sum(map(len, losses.values()))
    # The embeddings at hidden places do not depend on the frames there, and padding counts nowhere.
    changed = batch["frames"].clone()
    changed[encodings.hidden_frames] += 3.0
    again = Encodings(model.encoder, batch | {"frames": changed}, model.frames, mfm.hides)
    again.hidden_frames = encodings.hidden_frames
    assert (again.shown == encodings.shown).all()
    torch.manual_seed(3)
    padded = batch["frames"] + 50.0 * (batch["frame_mask"] == 0)[..., None]
    torch.testing.assert_close(model(batch | {"frames": padded})["mfm"].loss, learned.loss)


def test_a_batch_without_hidden_frames_has_no_loss_and_a_gradient():
    model, batch = model_of({"kind": "mfm", "share": 1e-9}), batch_of([5, 3], [1, 0])
    loss = model(batch)["mfm"].loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.objectives["mfm"].head.parameters())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["data.frames=null"], "mfm reads frames; say in data.frames where they are"),
        (["model.frames={kind: dual_stream}"], "mfm wants frames and text in one encoder; set model.frames.kind"),
        (["pretrain.batch_size=1"], "mfm compares the items of a batch, and batch_size=1 has one"),
    ],
)
def test_objectives_on_frames_want_frames_in_one_stream(lines, words):
    with pytest.raises(Fb3Error, match=words):
        recipe_of("pretrain.objectives=[{kind: mfm}]", *lines)


@torch.no_grad()
def test_itm_gives_items_the_frames_of_others_with_their_own_mask():
    counts = [3, 0, 1, 6, 2, 2]
    batch = batch_of([5, 3, 4, 6, 2, 7], counts) | {"group": torch.tensor([0, 1, 2, 3, 4, 4])}
    model, seen, given = model_of({"kind": "mfm"}, {"kind": "itm"}).eval(), [], []
    beside, itm = Encodings.beside, model.objectives["itm"]

    def look(encodings, *inputs):
        seen.append(inputs)
        return beside(encodings, *inputs)

    for number in range(20):
        torch.manual_seed(number)
        encodings = Encodings(model.encoder, batch, model.frames, model.objectives["mfm"].hides)
        encodings.beside = look.__get__(encodings)
        seen.clear()
        learned = itm(encodings)
        assert len(seen) == 2  # the shared pass, and one of the items with others' frames
        ids, mask, embedded, frame_mask = seen[1]
        states, truth = [], []
        for row, tokens in enumerate(batch["input_ids"]):
            place = (ids == tokens).all(1).nonzero()
            if len(place):
                own = int(place)
                (other,) = (n for n, each in enumerate(encodings.shown) if torch.equal(each, embedded[own]))
                given.append((row, other))
                assert (mask[own] == batch["attention_mask"][row]).all()
                assert int(frame_mask[own].sum()) == counts[other]
                alone = beside(encodings, *(each[own : own + 1] for each in seen[1]))[0]
            elif counts[row]:
                alone = encodings.hidden[row : row + 1]
            else:
                continue
            states.append(alone[0, 0])
            truth.append(float(not len(place)))
        logits, truth = itm.head(torch.stack(states)), torch.tensor(truth)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        torch.testing.assert_close(learned.loss, losses.sum() / 6)
        assert learned.measures["itm_accuracy"] == (((logits > 0).float() == truth).sum(), 5)
    assert {row for row, _ in given} == {other for _, other in given} == {0, 2, 3, 4, 5}  # item 1 takes no part
    assert not {(4, 5), (5, 4)} & {*given}  # one group
    assert len(given) == pytest.approx(20 * 2.5, abs=5)


def test_itm_draws_likely_pairs_more_often():
    itm, possible = model_of({"kind": "itm"}).objectives["itm"], ~torch.eye(4, dtype=torch.bool)
    likeness = torch.full((4, 4), -1e9)
    likeness[:, 2] = likeness[2, 3] = 1e9
    drawn = [pair for _ in range(50) for pair in torch.stack(itm.draw(possible, likeness), 1).tolist()]
    assert len(drawn) == 100
    assert sum(other == (3 if row == 2 else 2) for row, other in drawn) > 95
    assert all(row != other for row, other in drawn)
    assert [len(each) for each in itm.draw(torch.zeros(4, 4, dtype=torch.bool), likeness)] == [0, 0]


@torch.no_grad()
def test_itc_compares_texts_alone_with_frames_alone():
    counts, groups, rows = [3, 0, 1, 6, 2], [0, 1, 2, 3, 3], (0, 2, 3, 4)
    batch = batch_of([5, 3, 4, 6, 2], counts) | {"group": torch.tensor(groups), "empty": torch.tensor([[7, 8]] * 5)}
    model = model_of({"kind": "itm"}, {"kind": "itc", "width": 6}).eval()
    assert list(model.objectives) == ["itc", "itm"]
    itc, texts, frames, words = model.objectives["itc"], {}, {}, model.encoder.get_input_embeddings()
    for row in rows:
        tokens = int(batch["attention_mask"][row].sum())
        states = model.encoder(batch["input_ids"][row : row + 1, :tokens]).last_hidden_state[0]
        texts[row] = itc.text(states.mean(0))
        shown = model.frames(batch["frames"][row : row + 1])[0, : counts[row]]
        packed = torch.cat([words(torch.tensor([7])), shown, words(torch.tensor([8]))])[None]
        frames[row] = itc.frames(model.encoder(inputs_embeds=packed).last_hidden_state[0, 1 : counts[row] + 1].mean(0))
    losses, right = [], 0
    for one, two in ((texts, frames), (frames, texts)):
        for row in rows:
            left = [n for n in rows if n == row or groups[n] != groups[row]]
            cosines = {n: nearest(one[row], two[n]) / 0.07 for n in left}
            losses.append(math.log(sum(map(math.exp, cosines.values()))) - cosines[row])
            right += max(cosines, key=cosines.get) == row
    itc.temperature.fill_(0.07)
    encodings = Encodings(model.encoder, batch, model.frames)
    learned = itc(encodings)
    assert float(learned.loss) == pytest.approx(sum(losses) / 2 / 5, abs=1e-4)
    assert learned.measures["itc_accuracy"] == (right, 8)
    assert float(encodings.likeness[3, 2]) == pytest.approx(nearest(texts[3], frames[2]) / 0.07, abs=1e-3)
    itc.temperature.fill_(9.0)
    itc(encodings)
    assert itc.temperature == 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_by_all_objectives_on_frames(family):
    model = model_of(*({"kind": kind} for kind in ("mfm", "itm", "itc")), family=family)
    for counts in ([3, 0, 1, 6], [0, 0, 0, 0]):
        batch = batch_of([5, 3, 4, 6], counts) | {"group": torch.arange(4), "empty": torch.tensor([[7, 8]] * 4)}
        losses = torch.stack([learned.loss for learned in model(batch).values()])
        losses.sum().backward()
        assert losses.isfinite().all()
        assert ((losses > 0) == any(counts)).all()
        assert all(p.grad is not None for p in model.objectives.parameters()) or not any(counts)


def test_all_objectives_learn_and_go_on_bit_for_bit(tmp_path, monkeypatch):
    data = write_items(tmp_path / "data", 96, seed=1)
    lines = [*ALL, "train.save_every_steps=4", "pretrain.epochs=8", "data.frames.most=3", "pretrain.holdout=0.3"]
    whole = pretrain_encoder(recipe_of(*lines), data, tmp_path / "whole")
    stop_after(monkeypatch, 14)
    with pytest.raises(Stopped):
        pretrain_encoder(recipe_of(*lines), data, tmp_path / "parts")
    monkeypatch.undo()
    parts = pretrain_encoder(recipe_of(*lines), data, tmp_path / "parts")
    for name in ("model.safetensors", "frames.safetensors"):
        one, two = load_file(whole / name), load_file(parts / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    said, again = read_provenance(whole), read_provenance(parts)
    assert (said["before"], said["after"]) == (again["before"], again["after"])
    assert {"mfm", "mfm_accuracy", "itm", "itm_accuracy", "itc", "itc_accuracy", "mlm_accuracy"} <= {*said["after"]}
    assert said["after"]["loss"] < said["before"]["loss"]
