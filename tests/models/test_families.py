"""A table of encoder families: each trains, packs and predicts the same from the bundle, or is refused beforehand."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import FNetModel

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.batches import collate
from fb3.data.essays import read_essays
from fb3.data.tokens import encode_essays
from fb3.demo.synthetic import write_competition
from fb3.errors import Fb3Error
from fb3.models.backbone import empty_encoder
from fb3.models.build import build_scorer
from fb3.models.dry_run import check_length, make_up_weights, padding_for, precision_problem
from fb3.models.layer_stack import longest_input
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import check_reload, load_fold
from fb3.submission.inference import infer
from fb3.system.files import read_json
from fb3.training.run import train
from tests.models.families import FAMILIES, POSITIONS, make_tokenizers, write_backbone

LENGTH = 64
REFUSED = {
    "bart": "bart is an encoder with a decoder; take an encoder alone",
    "mbart": "mbart is an encoder with a decoder; take an encoder alone",
    "perceiver": "PerceiverModel is no encoder of texts; take another one",
    "reformer": r"ReformerModel cannot be used: .*states of the shape \(4, 64, 32\)",
    "xmod": "XmodModel cannot be used: .*Input language unknown.*set in its config.json what it asks for",
}
if "kwargs" not in inspect.signature(FNetModel.forward).parameters:  # up to late versions 4 of transformers
    REFUSED["fnet"] = "FNetModel cannot be used: .*unexpected keyword argument 'attention_mask'"
PADDED = {"convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso"}
NO_POSITIONS = {
    *("bloom", "deberta", "deberta-v2", "deberta-v2@v3", "esm", "eurobert", "funnel", "gemma", "gemma2", "gpt_neox"),
    *("gte", "jina_embeddings_v3", "llama", "mistral", "modernbert", "mt5", "nomic_bert", "qwen2", "qwen3", "t5"),
    *("umt5", "xlnet"),
}
SKIPS_TWO = {  # their positions begin after the padding's number, which is 1
    *("camembert", "data2vec-text", "ibert", "jina_embeddings_v3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod@en_XX"),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, texts):
    """Makes the backbone folder of a family, once."""
    tokenizers, root = make_tokenizers(texts), tmp_path_factory.mktemp("backbones")

    def make(family):
        if not (root / family).is_dir():
            write_backbone(family, tokenizers, root / family)
        return root / family

    return make


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A competition of a few essays, from one word to more than there is room for."""
    folder = tmp_path_factory.mktemp("few")
    write_competition(folder, 10, 2, seed=1)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table["full_text"] = [" ".join(text.split()[: 1 + i * i]) for i, text in enumerate(table["full_text"])]
    table.to_csv(folder / "train.csv", index=False)
    return folder


def recipe_for(folder, *overrides):
    exact = ["train.precision=fp32", "predict.precision=fp32", "train.epochs=1", f"data.max_length={LENGTH}"]
    return load_recipe("tiny", [f"model.backbone={folder}", "train.batch_size=4", *exact, *overrides])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_packs_and_predicts_alike_or_is_refused(family, backbone, few, tmp_path, capsys, no_sockets):
    recipe = recipe_for(backbone(family))
    if family in REFUSED:
        with pytest.raises(Fb3Error, match=REFUSED[family]) as refusal:
            train(recipe, few, tmp_path / "run")
        assert len(str(refusal.value).splitlines()) == 1
        assert "cannot be used" not in str(refusal.value) or "take another backbone" in str(refusal.value)
        assert not list((tmp_path / "run").glob("fold*"))
        return
    run = train(recipe, few, tmp_path / "run", folds=[0])
    said = f"depend on padding, so each text is padded to data.max_length={LENGTH}"
    assert (said in capsys.readouterr().err) == (family in PADDED)
    bundle = write_bundle([run.path], tmp_path / "bundle", check=replay(None))
    member = bundle.members()[0]
    kept = pd.read_csv(member.path / "oof.csv", dtype={"text_id": str}).set_index("text_id")
    offline = infer(bundle.path, out=tmp_path / "s.csv", test=few / "train.csv", strict=True).set_index("text_id")
    columns = list(recipe.data.target_columns)
    np.testing.assert_allclose(kept[columns], offline.loc[kept.index, columns], atol=2e-5)
    essays = read_essays(few / "train.csv", recipe.data)
    scorer, encoded = load_fold(recipe, member.path / "encoder", member.folds[0]), encode(member, essays)
    make_up_weights(scorer.encoder)  # in a tiny encoder as it starts, neighbours hardly show
    together, alone = pooled(scorer, encoded, [range(len(essays))]), pooled(scorer, encoded, [[i] for i in range(10)])
    assert min(map(len, encoded.rows)) < 10 < LENGTH == max(map(len, encoded.rows))
    torch.testing.assert_close(together, alone, atol=1e-4 * float(alone.abs().max()), rtol=0)


@torch.no_grad()
def pooled(scorer, encoded, batches):
    """The vectors of all essays, in those batches."""
    return torch.cat([scorer.eval().pool(collate(encoded, np.array(rows))) for rows in batches])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])
def test_as_many_tokens_as_there_are_positions_and_no_more(family, backbone):
    encoder = empty_encoder(backbone(family))
    make_up_weights(encoder)
    if family == "funnel":
        encoder.config.fb3_padded_to = LENGTH
    limit = longest_input(encoder.eval())
    by_token_types = family in {"nomic_bert", "jina_embeddings_v3"} and limit is not None  # in transformers 5.15
    if family in NO_POSITIONS and not by_token_types:
        assert limit is None
        assert runs(encoder, 4 * POSITIONS)
        return
    skipped = 2 if family in SKIPS_TWO and not by_token_types else 0
    assert limit == (256 if family == "big_bird" else POSITIONS - skipped)
    assert runs(encoder, limit)
    assert family == "tapas" or not runs(encoder, limit + 1)  # which repeats its last position


@torch.no_grad()
def runs(encoder, tokens):
    ids = torch.full((1, tokens), 7)
    try:
        return bool(encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.isfinite().all())
    except (IndexError, RuntimeError):
        return False


@pytest.fixture
def tower(backbone, tmp_path):
    """Builds a family's tower as it is tried before a training."""

    def build(family, *overrides):
        return build_scorer(recipe_for(backbone(family), *overrides), backbone(family), init="trial")

    return build


def test_positions_are_counted_in_windows_too(tower):
    check_length(tower("ibert"), POSITIONS - 2, "data.max_length")
    with pytest.raises(Fb3Error, match=r"data\.windows\.length=79: the encoder has positions for 78 tokens only"):
        check_length(tower("ibert"), POSITIONS - 1, "data.windows.length")


def test_what_changes_from_call_to_call_is_refused(tower):
    noisy = tower("bert")
    assert padding_for(noisy, LENGTH, "it") is None
    layer = noisy.encoder.encoder.layer[0].attention.self
    layer.register_forward_hook(lambda module, given, out: (out[0] + 1e-2 * torch.rand(()), *out[1:]))
    with pytest.raises(Fb3Error, match=r"it: BertModel cannot be used: .*the same text's states differ by \d+\.\d%"):
        padding_for(noisy, LENGTH, "it")


@pytest.mark.parametrize(
    ("family", "fails"),
    [
        ("bert", {}),
        ("deberta-v2", {}),
        ("modernbert", {}),
        ("deberta", {"bf16": "without overflow", "fp16": "without overflow"}),
        ("t5", {"fp16": "T5EncoderModel is not made for fp16"}),
    ],
)
def test_the_precisions_that_a_family_learns_in(family, fails, tower):
    """On a CPU, where fp16 is slow and works."""
    for precision in ("fp32", "bf16", "fp16"):
        why = precision_problem(tower(family), precision, torch.device("cpu"), LENGTH)
        assert fails[precision] in why if precision in fails else why == ""


def test_an_encoder_that_fails_in_low_precision_trains_in_full(backbone, few, tmp_path, capsys):
    recipe = recipe_for(backbone("deberta"), "train.precision=bf16", "predict.precision=bf16")
    run = train(recipe, few, tmp_path / "run", folds=[0])
    assert re.search(r"DebertaModel cannot learn in bf16 \(.*overflow\); trains in fp32", capsys.readouterr().err)
    assert read_json(run.path / "environment.json")["precision"] == "fp32"
    same = train(recipe_for(backbone("deberta")), few, tmp_path / "same", folds=[0])
    assert (run.path / "fold0/model.safetensors").read_bytes() == (same.path / "fold0/model.safetensors").read_bytes()
    write_bundle([run.path], tmp_path / "bundle", check=replay(None))


@pytest.mark.parametrize(("family", "precision"), [("mra", "bf16"), ("fnet", "bf16"), ("t5", "fp16")])
def test_a_precision_that_fails_costs_no_prediction(family, precision, backbone, few, tmp_path, capsys):
    """MRA and FNet raise in bf16; T5 in fp16 would compute, wrongly."""
    if family in REFUSED:
        pytest.skip("this version of transformers gives it no mask")
    run = train(recipe_for(backbone(family)), few, tmp_path / "run", folds=[0])
    member = write_bundle([run.path], tmp_path / "bundle").members()[0]
    essays = read_essays(few / "train.csv", member.recipe.data)
    encoded, ids = encode(member, essays), essays["text_id"].to_numpy()
    full, low = (predict_fold(member, 0, encoded, ids, "cpu", precision=p, shown=False) for p in ("fp32", precision))
    assert np.array_equal(full.values, low.values)
    assert full.values.std(0).min() > 0
    said = {"mra": r"run/fold0: bf16 fails \(.*\); again in fp32", "t5": "T5EncoderModel is not made for fp16.* fp32"}
    assert re.search(said.get(family, said["mra"]), capsys.readouterr().err)


def test_what_is_saved_has_to_predict_as_what_is_trained(backbone, few):
    recipe = recipe_for(backbone("bert"))
    scorer = build_scorer(recipe, backbone("bert"), init="pretrained")
    batch = collate(encode_essays(read_essays(few / "train.csv", recipe.data), backbone("bert"), recipe.data), [0, 1])
    state = torch.get_rng_state()
    check_reload(scorer, recipe, backbone("bert"), batch)
    assert torch.equal(torch.get_rng_state(), state)  # or the training would draw other dropout masks
    scorer.encoder.embeddings.LayerNorm.eps = 1.0  # stands neither in the config nor in the weights
    with pytest.raises(Fb3Error, match=r"a saved BertModel cannot be loaded again as it was \(it predicts otherwise\)"):
        check_reload(scorer, recipe, backbone("bert"), batch)


def test_a_pooling_of_a_first_token_that_is_text_is_refused(backbone, few, tmp_path):
    train(recipe_for(backbone("bert"), "model.pooling={kind: cls}"), few, tmp_path / "bert", folds=[0])
    with pytest.raises(Fb3Error, match=r"pooling\.kind=cls reads the first token, and this tokenizer puts none before"):
        train(recipe_for(backbone("xlnet"), "model.pooling={kind: cls}"), few, tmp_path / "xlnet", folds=[0])
