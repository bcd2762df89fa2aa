import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel

from fb3.data.batches import collate
from fb3.data.masking import IGNORED
from fb3.data.pretraining_texts import cut_texts
from fb3.data.tokenizer import load_tokenizer
from fb3.models.backbone import export_encoder, pretrained_encoder
from fb3.models.pretraining_heads import MaskedTokenHead, shallow_copy, word_embeddings
from fb3.pretraining.encodings import Encodings
from fb3.pretraining.objectives import OBJECTIVES, build_objectives, info_nce
from fb3.pretraining.pretraining_model import PretrainingModel, PretrainingTask
from fb3.recipe import load_recipe
from fb3.recipe.model import ModelSettings
from fb3.recipe.pretraining import ObjectiveSettings, PretrainingSettings
from fb3.recipe.settings import kinds
from tests.models.families import FAMILIES, make_tokenizers, write_backbone

ALL = [{"kind": "mlm"}, {"kind": "simcse"}, {"kind": "rtd"}, {"kind": "order"}]
SHOWN = ["albert", "bert", "deberta-v2@v3", "distilbert", "electra", "modernbert", "roberta", "t5", "xlm-roberta"]


@pytest.fixture(scope="module")
def tokenizers(texts):
    return make_tokenizers(texts)


@pytest.fixture(scope="module")
def encoder(tiny_bert, tmp_path_factory):
    """A tiny BERT with dropout, and the folder of its files."""
    return encoder_of(tiny_bert, tmp_path_factory.mktemp("encoder"))


def encoder_of(backbone, folder):
    settings = ModelSettings(backbone=str(backbone), dropout=0.1)
    export_encoder(settings, folder)
    return pretrained_encoder(settings, folder), folder


def batch_of(folder, texts, objectives, rows=8, groups=None):
    settings = PretrainingSettings(objectives=objectives, length=40)
    tokenizer, pad = load_tokenizer(folder)
    groups = np.arange(len(texts)) if groups is None else groups
    made = cut_texts(texts, groups, tokenizer, pad, load_recipe("tiny").data, settings, seed=1)
    batch = collate(made, np.arange(0, 2 * rows, 2), np.zeros((len(made.rows), 0)))
    return settings, batch


def model_of(encoder, settings):
    torch.manual_seed(0)
    return PretrainingModel(encoder, build_objectives(settings.objectives, encoder))


def test_every_objective_of_the_recipe_has_its_class():
    assert OBJECTIVES.keys() == kinds(ObjectiveSettings).keys()


@pytest.mark.parametrize("family", [name for name in SHOWN if name in FAMILIES])
def test_each_family_learns_by_each_objective(family, tokenizers, texts, tmp_path):
    write_backbone(family, tokenizers, tmp_path / "backbone")
    settings = ModelSettings(backbone=str(tmp_path / "backbone"))
    export_encoder(settings, tmp_path / "encoder")
    encoder = pretrained_encoder(settings, tmp_path / "encoder")
    settings, batch = batch_of(tmp_path / "encoder", texts, ALL)
    model = model_of(encoder, settings).train()
    out = PretrainingTask(settings).loss(model, batch)
    out.loss.backward()
    assert list(out.logs) == ["mlm", "simcse", "rtd", "order"]
    assert all(math.isfinite(value) and value > 0 for value in out.logs.values())
    for kind, objective in model.objectives.items():
        assert all(p.grad is not None for p in objective.parameters()) or kind == "rtd"
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    moved = [p.grad is not None for name, p in model.encoder.named_parameters() if "pooler" not in name]
    assert np.mean(moved) > 0.9
    # A loss of nothing learned: the vocabulary's size, a coin, the batch's size.
    tokens = len(word_embeddings(encoder))
    assert family == "t5" or abs(out.logs["mlm"] - math.log(tokens)) < 1.5  # its embeddings are far from small
    assert abs(out.logs["order"] - math.log(2)) < 0.7
    assert out.logs["simcse"] < 1.2 * math.log(len(batch["group"]))


def test_mlm_is_the_mean_of_each_rows_cross_entropy_at_its_hidden_places(encoder, texts):
    settings, batch = batch_of(encoder[1], texts, [{"kind": "mlm"}])
    model = model_of(encoder[0], settings).eval()
    head, states = (
        model.objectives["mlm"].head,
        model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state,
    )
    logits = F.linear(head.norm(F.gelu(head.dense(states))), word_embeddings(model.encoder), head.bias)
    losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none")
    hidden = batch["labels"] != IGNORED
    by_row = losses.sum(1) / hidden.sum(1).clamp(min=1)
    learned = model(batch)["mlm"]
    torch.testing.assert_close(learned.loss, by_row.mean())
    total, count = learned.measures["mlm"]
    torch.testing.assert_close(total / count, losses[hidden].mean())
    right, count = learned.measures["mlm_accuracy"]
    assert right / count == (logits.argmax(-1) == batch["labels"])[hidden].float().mean()


def test_losses_of_parts_of_a_batch_add_up_to_the_batchs(encoder, texts):
    objectives = [{"kind": "mlm"}, {"kind": "order"}]
    settings, batch = batch_of(encoder[1], texts, objectives)
    model, task = model_of(encoder[0], settings).eval(), PretrainingTask(settings)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 3), slice(3, 8))]
    whole = task.loss(model, batch).loss
    torch.testing.assert_close(sum(len(p["group"]) / 8 * task.loss(model, p).loss for p in parts), whole)


def test_info_nce_is_its_formula():
    one, two = torch.randn(6, 4), torch.randn(6, 4)
    group = torch.tensor([0, 1, 1, 2, 3, 1])
    losses = info_nce(one, two, group, 0.05)
    for row in range(6):
        cosines = [float(F.cosine_similarity(one[row], two[other], dim=0)) / 0.05 for other in range(6)]
        kept = [other for other in range(6) if other == row or group[other] != group[row]]
        expected = math.log(sum(math.exp(cosines[other]) for other in kept)) - cosines[row]
        assert float(losses[row]) == pytest.approx(expected, abs=1e-4)
    assert info_nce(one, two, torch.zeros(6), 0.05).abs().max() < 1e-5  # no negatives, nothing to learn
    same = F.one_hot(torch.arange(3)).float()
    assert float(info_nce(same, same, torch.arange(3), 1.0)[0]) == pytest.approx(math.log(1 + 2 / math.e))


def test_simcse_sees_two_dropout_masks_of_the_plain_text_and_measures_its_space(encoder, texts):
    settings, batch = batch_of(encoder[1], texts, [{"kind": "mlm"}, {"kind": "simcse"}])
    model = model_of(encoder[0], settings)
    for mode in (True, False):
        model.train(mode)
        learned = model(batch)["simcse"]
        measures = {name: float((total / count).detach()) for name, (total, count) in learned.measures.items()}
        assert measures["alignment"] > 1e-6
        assert model.encoder.training == mode
    assert 0 < measures["uniformity"] <= 1
    encodings = Encodings(model.encoder, batch)
    plain = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    assert (encodings.plain_ids == plain).all()
    assert (plain != batch["input_ids"]).any()


def test_objectives_share_a_forward_pass(encoder, texts):
    settings, batch = batch_of(encoder[1], texts, [{"kind": "mlm"}, {"kind": "order"}])
    model, calls = model_of(encoder[0], settings), []
    hook = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    model(batch)
    hook.remove()
    assert len(calls) == 1


def test_every_pass_of_an_encoder_is_in_the_precision_of_the_loop(encoder, texts):
    settings, batch = batch_of(encoder[1], texts, ALL)
    model, seen = model_of(encoder[0], settings), []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == 2 * module.in_features:  # a layer's inner one
            module.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch)
    assert len(seen) > len(ALL)
    assert {*seen} == {torch.bfloat16}


def test_the_discriminator_sees_the_generators_guesses_and_the_generator_gets_no_gradient_of_it(encoder, texts):
    settings, batch = batch_of(encoder[1], texts, [{"kind": "rtd", "discriminator_weight": 1.0}])
    model = model_of(encoder[0], settings).train()
    learned = model(batch)["rtd"]
    learned.loss.backward()
    mine = [p.grad.clone() for p in model.objectives["rtd"].generator.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(3)
    model.objectives["rtd"].weight = 0.0
    again = model(batch)["rtd"]
    again.loss.backward()
    discriminator = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    assert all(grad.abs().max() == 0 for grad in discriminator)
    assert len(mine) == len([p for p in model.objectives["rtd"].generator.parameters() if p.grad is not None])
    # Untrained, about half of the guesses at hidden places are found, by chance; all tokens count.
    assert float(learned.measures["rtd"][1]) == float(batch["attention_mask"].sum())
    assert float(learned.measures["rtd_found"][1]) <= float((batch["labels"] != IGNORED).sum())


@pytest.mark.parametrize("family", ["bert", "albert", "deberta-v2@v3", "distilbert"])
def test_a_shallow_copy_is_the_lowest_layers(family, tokenizers, tmp_path):
    write_backbone(family, tokenizers, tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    copy = shallow_copy(encoder, 0.5)
    ids = torch.arange(5, 15)[None]
    states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
    mine = copy(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(mine, states[1])
    assert encoder.config.num_hidden_layers == 2
    assert copy.get_input_embeddings().weight is not encoder.get_input_embeddings().weight


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "albert", "electra", "distilbert", "modernbert", "deberta-v2@v3"]
)
def test_a_checkpoints_own_head_gives_its_own_logits(family, tokenizers, tmp_path):
    """transformers' own masked language model with the same weights is the independent computation."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    write_backbone(family, tokenizers, tmp_path)
    theirs = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    head = MaskedTokenHead(theirs.base_model)
    assert head.start(torch.ones(len(head.bias)), theirs.state_dict())
    ids = torch.arange(5, 15)[None]
    states = theirs.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(head(states, word_embeddings(theirs.base_model)), logits, rtol=0, atol=2e-3)


def test_a_new_head_knows_how_frequent_tokens_are(encoder):
    head, counts = MaskedTokenHead(encoder[0]), torch.zeros(300)
    counts[7] = 1000.0
    assert not head.start(counts, {"lm_predictions.lm_head.dense.weight": torch.zeros(16, 16)})
    assert head(torch.zeros(1, 16), word_embeddings(encoder[0])).argmax() == 7
    assert head.bias.detach().exp().sum().item() == pytest.approx(1.0, abs=1e-4)
