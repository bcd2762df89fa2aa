"""Encoders, tiny from their configs: layers, freezing, dropout, new tokens, and what is refused.

That each family trains, packs and predicts alike stands in test_families.py.
"""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fb3.bundles.packing import write_bundle
from fb3.data.tokenizer import added_tokens, load_tokenizer, target_tokens
from fb3.data.tokens import encode_texts
from fb3.errors import Fb3Error
from fb3.models.backbone import export_encoder, pretrained_encoder
from fb3.models.backbone_files import check_backbone
from fb3.models.build import build_scorer
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.models.layer_stack import depth_of_parameters, layer_stack
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import load_fold
from fb3.submission.inference import infer
from fb3.system.files import read_json, write_json
from fb3.training.optimizer import build_optimizer
from fb3.training.run import train

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS = {"max_position_embeddings": 80}
DEBERTA = {
    **BERT,
    **POSITIONS,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}
FAMILIES = {
    "bert": {**BERT, **POSITIONS},
    "roberta": {**BERT, **POSITIONS},
    "deberta": {**DEBERTA, "type_vocab_size": 0},
    "deberta-v2": {**DEBERTA, "position_buckets": 8, "conv_kernel_size": 3, "type_vocab_size": 0},
    "deberta-v3": {**DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "electra": {**BERT, **POSITIONS, "embedding_size": 8},
    "albert": {**BERT, **POSITIONS, "embedding_size": 8, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "longformer": {**BERT, **POSITIONS, "attention_window": [8, 8]},
    "big_bird": {**BERT, "max_position_embeddings": 256, "block_size": 4, "num_random_blocks": 1},
    "funnel": {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "num_decoder_layers": 1},
    "t5": {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, texts):
    """Makes the backbone folder of a family, once."""
    tokenizer = train_tokenizer(texts, 300)
    made = {}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            size = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, "architectures": []}
            config = AutoConfig.for_model(family.replace("-v3", "-v2"), **FAMILIES[family], **size)
            AutoModel.from_config(config).save_pretrained(folder)
            copy = Tokenizer.from_str(tokenizer.to_str())
            PreTrainedTokenizerFast(tokenizer_object=copy, **SPECIAL).save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


def recipe_for(folder, *overrides):
    exact = ["train.precision=fp32", "predict.precision=fp32", "train.epochs=1", "data.max_length=64"]
    return load_recipe("tiny", [f"model.backbone={folder}", "data.sample=12", *exact, *overrides])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_changes_the_weights(family, backbone, tmp_path):
    recipe = recipe_for(backbone(family))
    export_encoder(recipe.model, tmp_path / "encoder")
    scorer = build_scorer(recipe, tmp_path / "encoder", init="pretrained").eval()
    ids = torch.randint(5, 200, (2, 24))
    before = [p.detach().clone() for p in layer_stack(scorer.encoder)[0].parameters()]
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=False)
    scorer({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).scores.square().sum().backward()
    optimizer.step()
    after = layer_stack(scorer.encoder)[0].parameters()
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_are_the_lowest_depth_and_the_layers_rise(family, backbone, tmp_path):
    recipe = recipe_for(backbone(family))
    export_encoder(recipe.model, tmp_path / "encoder")
    encoder = build_scorer(recipe, tmp_path / "encoder", init="config").encoder
    depths, top = depth_of_parameters(encoder)
    assert set(depths.values()) == set(range(top + 1))
    word = {id(p) for p in encoder.get_input_embeddings().parameters()}
    assert {depths[name] for name, p in encoder.named_parameters() if id(p) in word} == {0}
    for number, layer in enumerate(layer_stack(encoder), 1):
        inside = {id(p) for p in layer.parameters()}
        own = [n for n, p in encoder.named_parameters() if id(p) in inside and "relative_attention_bias" not in n]
        assert {depths[name] for name in own} == {number}


def test_more_tokens_than_positions_are_refused_before_training(backbone, competition, tmp_path):
    for family, limit in (("bert", 80), ("roberta", 79)):
        recipe = recipe_for(backbone(family), f"data.max_length={limit + 1}")
        with pytest.raises(
            Fb3Error, match=rf"data\.max_length={limit + 1}: the encoder has positions for {limit} tokens"
        ):
            train(recipe, competition, tmp_path / f"{family}-run")


def test_a_deberta_folder_with_a_sentencepiece_model_alone(tmp_path, texts):
    import sentencepiece

    folder = tmp_path / "spm"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "spm"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]"},
        **{"eos_piece": "[SEP]", "unk_piece": "[UNK]", "user_defined_symbols": ["[MASK]"]},
    )
    AutoModel.from_config(
        AutoConfig.for_model("deberta-v2", **FAMILIES["deberta-v3"], vocab_size=210, architectures=[])
    ).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    export_encoder(recipe_for(folder).model, tmp_path / "encoder")
    tokenizer, pad = load_tokenizer(tmp_path / "encoder")
    assert pad == 0
    tokens = tokenizer.encode(texts[0]).tokens
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert "[UNK]" not in tokenizer.encode(texts[0].replace("\n", " ")).tokens


def test_what_an_encoder_lacks_is_refused(backbone, tmp_path):
    def build(family, *overrides):
        recipe = recipe_for(backbone(family), *overrides)
        folder = tmp_path / f"{family}{len(list(tmp_path.iterdir()))}"
        export_encoder(recipe.model, folder)
        return build_scorer(recipe, folder, init="pretrained")

    with pytest.raises(Fb3Error, match="has no pooler"):
        build("deberta-v2", "model.pooling.kind=pooler")
    with pytest.raises(Fb3Error, match="differ in length"):
        build("funnel", "model.pooling={kind: concat_layers, layers: 1}")
    with pytest.raises(Fb3Error, match="has 2 layers"):
        build("bert", "model.freeze_layers=3")
    with pytest.raises(Fb3Error, match="shares one layer"):
        build("albert", "model.freeze_layers=1")
    with pytest.raises(Fb3Error, match="at most 2"):
        build("bert", "model.pooling={kind: concat_layers, layers: 3}")


@pytest.mark.parametrize("wish", ["true", "auto"])
def test_checkpointing_where_it_cannot_be_is_refused(backbone, tmp_path, monkeypatch, wish):
    recipe = recipe_for(backbone("bert"), f"model.gradient_checkpointing={wish}")
    export_encoder(recipe.model, tmp_path / "encoder")
    encoder = build_scorer(recipe, tmp_path / "encoder", init="pretrained").encoder
    assert encoder.is_gradient_checkpointing == (wish == "true")
    monkeypatch.setattr(type(encoder), "supports_gradient_checkpointing", False)
    with pytest.raises(Fb3Error, match="gradient_checkpointing: BertModel cannot do it; set it to false"):
        build_scorer(recipe, tmp_path / "encoder", init="pretrained")


def test_freezing_dropout_and_checkpointing(backbone, tmp_path):
    extra = ["model.freeze_embeddings=true", "model.freeze_layers=1", "model.gradient_checkpointing=true"]
    recipe = recipe_for(backbone("deberta-v3"), *extra, "model.dropout=0.3", "model.attention_dropout=0.2")
    export_encoder(recipe.model, tmp_path / "encoder")
    encoder = build_scorer(recipe, tmp_path / "encoder", init="pretrained").encoder
    assert not any(p.requires_grad for p in encoder.embeddings.parameters())
    lower, upper = layer_stack(encoder)
    assert not any(p.requires_grad for p in lower.parameters())
    assert all(p.requires_grad for p in upper.parameters())
    assert encoder.is_gradient_checkpointing
    assert (encoder.config.hidden_dropout_prob, encoder.config.attention_probs_dropout_prob) == (0.3, 0.2)


def test_no_dropout_is_left_by_default(backbone, tmp_path):
    for family in FAMILIES:
        recipe = recipe_for(backbone(family))
        export_encoder(recipe.model, tmp_path / family)
        encoder = build_scorer(recipe, tmp_path / family, init="pretrained").encoder
        rates = {name: m.p for name, m in encoder.named_modules() if isinstance(m, torch.nn.Dropout) and m.p}
        assert not rates, family


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropout_is_set_or_refused(family, backbone, tmp_path):
    """ALBERT's configs on the hub say 0, not 0.0."""
    for key, missing in (("dropout", set()), ("attention_dropout", {"xlnet", "t5"})):
        recipe = recipe_for(backbone(family), f"model.{key}=0.3")
        if family in missing:
            with pytest.raises(Fb3Error, match=f"model.{key}=0.3: {family} has no such dropout"):
                export_encoder(recipe.model, tmp_path / key)
            continue
        export_encoder(recipe.model, tmp_path / key)
        encoder = build_scorer(recipe, tmp_path / key, init="pretrained").encoder
        rates = {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)}
        rates |= {m.dropout for m in encoder.modules() if isinstance(getattr(m, "dropout", None), float)}
        rates |= {m.dropout_prob for m in encoder.modules() if isinstance(getattr(m, "dropout_prob", None), float)}
        assert 0.3 in rates


def test_half_precision_weight_files_become_float32(backbone, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(backbone("bert"), folder)
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    recipe = recipe_for(folder)
    export_encoder(recipe.model, tmp_path / "encoder")
    scorer = build_scorer(recipe, tmp_path / "encoder", init="pretrained")
    assert {p.dtype for p in scorer.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "the tokenizer is missing"),
        ("model.safetensors", "the weights are missing"),
    ],
)
def test_a_backbone_folder_with_a_file_missing(backbone, tmp_path, remove, words):
    folder = tmp_path / "broken"
    shutil.copytree(backbone("bert"), folder)
    (folder / remove).unlink()
    with pytest.raises(Fb3Error, match=words):
        check_backbone(str(folder))


def test_a_backbone_that_is_not_there(tmp_path):
    with pytest.raises(Fb3Error, match="no such folder"):
        check_backbone(str(tmp_path / "none"))


def test_weights_of_another_architecture_do_not_pass_as_pretrained(backbone, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(backbone("bert"), folder)
    shutil.copyfile(backbone("electra") / "model.safetensors", folder / "model.safetensors")
    recipe = recipe_for(folder)
    export_encoder(recipe.model, tmp_path / "encoder")
    with pytest.raises(Fb3Error, match=r"in the file and .* by config\.json .*; take config, tokenizer and"):
        build_scorer(recipe, tmp_path / "encoder", init="pretrained")


def test_new_tokens_survive_and_start_as_the_mean(backbone, competition, tmp_path, no_sockets):
    recipe = recipe_for(
        backbone("bert"), "data.text={newlines: true, prompt: tokens}", "model.pooling.kind=target_tokens"
    )
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    bundle = write_bundle([run.path], tmp_path / "bundle").path
    folder = bundle / "runs" / "run" / "encoder"
    tokenizer, _ = load_tokenizer(folder)
    assert tokenizer.encode("so [BR] it", add_special_tokens=False).ids.count(tokenizer.token_to_id("[BR]")) == 1
    start = build_scorer(recipe, folder, init="pretrained").encoder.get_input_embeddings().weight
    old = len(start) - 7
    assert start.shape[0] == tokenizer.get_vocab_size()
    torch.testing.assert_close(start[old:], start[:old].mean(0).expand(7, -1))
    trained = load_fold(recipe, folder, bundle / "runs" / "run" / "fold0").encoder.get_input_embeddings().weight
    assert (trained[old:] != start[old:]).any(1).all(), "each new token has learned something"
    infer(bundle, competition, tmp_path / "submission.csv", strict=True)


def with_spare_rows(folder, to, count):
    """A copy whose embeddings have rows for which there is no token, far from all others."""
    shutil.copytree(folder, to)
    model = AutoModel.from_pretrained(folder)
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(old + count, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[old:] = 1000.0
    model.save_pretrained(to)
    return to


@pytest.mark.parametrize("spare", [0, 2, 9])
@pytest.mark.parametrize("family", ["bert", "deberta-v3", "albert", "funnel", "t5", "xlnet"])
def test_new_tokens_start_as_the_mean_of_the_old_whatever_rows_there_are(family, spare, backbone, tmp_path):
    plain = backbone(family)
    folder = with_spare_rows(plain, tmp_path / "spare", spare) if spare else plain
    added = ["[BR]", "[CAP]", "[UP]"]
    recipe = recipe_for(folder, f"model.stitch={{backbone: {folder}}}")
    for place, settings in ((tmp_path / "a", recipe.model), (tmp_path / "b", recipe.model.second())):
        export_encoder(settings, place, added)
        encoder = pretrained_encoder(settings, place)
        tokenizer, _ = load_tokenizer(place)
        new = [tokenizer.token_to_id(token) for token in added]
        before = AutoModel.from_pretrained(plain).get_input_embeddings().weight
        assert new == [len(before), len(before) + 1, len(before) + 2]
        weight = encoder.get_input_embeddings().weight
        assert weight.shape == (len(before) + max(spare, 3), before.shape[1])
        assert encoder.config.vocab_size == len(weight)
        torch.testing.assert_close(weight[: len(before)], before)
        torch.testing.assert_close(weight[new], before.mean(0).expand(3, -1))
        tied = [m for name, m in encoder.named_modules() if name.endswith(("shared", "embed_tokens"))]
        assert all(m.weight is weight for m in tied)
        if spare == 9:
            assert (weight[len(before) + 3 :] == 1000.0).all(), "nobody reads them"


def test_a_token_that_the_backbone_knows_keeps_its_embedding(backbone, tmp_path):
    settings = recipe_for(backbone("bert")).model
    export_encoder(settings, tmp_path / "once", ["[BR]"])
    encoder = pretrained_encoder(settings, tmp_path / "once")
    with torch.no_grad():
        encoder.get_input_embeddings().weight[-1] = 7.0
    encoder.save_pretrained(tmp_path / "once")
    settings = recipe_for(tmp_path / "once").model
    export_encoder(settings, tmp_path / "again", ["[BR]", "[CAP]"])
    weight = pretrained_encoder(settings, tmp_path / "again").get_input_embeddings().weight
    assert (weight[-2] == 7.0).all()
    torch.testing.assert_close(weight[-1], weight[:-1].mean(0))


def started(recipe, out):
    export_encoder(recipe.model, out)
    return build_scorer(recipe, out, init="pretrained")


def test_a_vocabulary_that_is_not_the_weights_is_refused(backbone, tmp_path):
    folder = tmp_path / "larger"
    shutil.copytree(backbone("bert"), folder)
    rows = AutoModel.from_pretrained(folder).get_input_embeddings().num_embeddings
    name = r"(bert\.)?embeddings\.word_embeddings\.weight"
    for size, words in (
        (
            rows + 50,
            rf"{name} is \[{rows}, 16\] in the file and \[{rows + 50}, 16\] by config\.json \(1 such weights\); t",
        ),
        (rows - 50, rf"its tokenizer has {rows} tokens and config\.json gives the weights {rows - 50} \(vocab_size\)"),
    ):
        write_json({**read_json(folder / "config.json"), "vocab_size": size}, folder / "config.json")
        with pytest.raises(Fb3Error, match=rf"model\.backbone={folder}: {words}"):
            started(recipe_for(folder), tmp_path / "encoder")


FIRST = [
    "{kind: cls}",
    "{kind: lstm_layers, layers: 1}",
    "{kind: gru_layers, layers: 1}",
    "{kind: attention_layers, layers: 1}",
]


@pytest.mark.parametrize("ends", ["$A [SEP] [CLS]", "$A [SEP]"])
def test_no_word_is_taken_for_the_token_of_the_whole_text(ends, backbone, tmp_path):
    """XLNet puts <cls> last, T5 </s> only."""
    folder = tmp_path / "last"
    shutil.copytree(backbone("xlnet"), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=ends, special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[SEP]", "[CLS]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    stand = ends.removeprefix("$A ").replace("[", r"\[").replace("]", r"\]")
    for kind in FIRST:
        export_encoder(recipe_for(backbone("xlnet"), f"model.pooling={kind}").model, tmp_path / "encoder")
        with pytest.raises(Fb3Error, match=rf"reads the first token, .* \({stand} stand after it\); take mean or att"):
            export_encoder(recipe_for(folder, f"model.pooling={kind}").model, tmp_path / "encoder")
    recipe = recipe_for(folder, "model.pooling.kind=target_tokens", "data.text={prompt: tokens}")
    export_encoder(recipe.model, tmp_path / "encoder", added_tokens(recipe.data))
    encoded = encode_texts(["a text"], tmp_path / "encoder", recipe.data)
    names = [load_tokenizer(tmp_path / "encoder")[0].id_to_token(number) for number in encoded.rows[0]]
    pooling = build_scorer(recipe, tmp_path / "encoder", init="config").pooling
    assert names[pooling.prompt.start : pooling.prompt.stop] == target_tokens(recipe.data)


def test_a_second_backbone_that_is_not_there_is_named_by_its_key(backbone, competition, tmp_path):
    recipe = recipe_for(backbone("bert"), "model.stitch={backbone: /nowhere/at/all}")
    with pytest.raises(Fb3Error, match=r"model\.stitch\.backbone=/nowhere/at/all: no such folder"):
        train(recipe, competition, tmp_path / "run", folds=[0])
