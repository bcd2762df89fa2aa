"""Backends: the same states as torch's, and torch wherever they cannot be had."""

import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from fb3.bundles.bundle import read_bundle
from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.essays import read_essays
from fb3.errors import Fb3Error
from fb3.models.heads import LinearHead
from fb3.models.kernels.blocked_attention import use_blocked_attention
from fb3.models.poolings.layer_poolings import ConcatLayersPooling
from fb3.models.poolings.token_poolings import MeanPooling, PoolerPooling
from fb3.models.poolings.window_pooling import SingleWindow
from fb3.models.scorer import Scorer, StitchedScorer
from fb3.models.statistics_net import NoStatistics
from fb3.models.towers import Tower
from fb3.prediction.backends.choose import pick_backend, use_backend
from fb3.prediction.backends.functional_encoder import FunctionalEncoder
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode
from fb3.recipe import load_recipe
from fb3.recipe.data import WindowsSettings
from fb3.submission.inference import infer
from fb3.training.run import train
from tests.conftest import TINY

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 60,
    "pad_token_id": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
FAMILIES = {
    "bert": {},
    "roberta": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}
POOLINGS = {"last": MeanPooling, "layers": lambda hidden: ConcatLayersPooling(hidden, 2), "pooler": PoolerPooling}


@pytest.fixture(params=["openvino", "onnx"])
def backend(request):
    taken, why = pick_backend(request.param, CPU)
    if taken != request.param:
        pytest.skip(why)
    return taken


@pytest.fixture
def absent(monkeypatch):
    """No backend's library can be imported."""
    for name in ("openvino", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)


def tower(family, reads="last", seed=0):
    torch.manual_seed(seed)
    encoder = AutoModel.from_config(AutoConfig.for_model(family, **SMALL, **FAMILIES[family])).eval()
    for parameter in encoder.parameters():  # no zeros and ones, which a conversion could take for nothing
        nn.init.normal_(parameter, std=0.3)
    use_blocked_attention(encoder)
    return Tower(encoder, POOLINGS[reads](32), SingleWindow())


def scorer(family, reads="last", seed=0):
    made = tower(family, reads, seed)
    return Scorer(made, NoStatistics(made.pooling.width), LinearHead(made.pooling.width, 6)).eval()


def batch(essays, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (essays,), generator=generator)
    lengths[0] = tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    ids = torch.randint(2, 60, (essays, tokens), generator=generator)
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


@torch.inference_mode()
def outputs(model, batches):
    return [model(each).scores for each in batches]


@pytest.mark.parametrize(
    ("family", "reads"),
    [(f, r) for f in FAMILIES for r in POOLINGS if (f, r) != ("deberta-v2", "pooler")],
)
def test_every_fold_scores_as_with_torch_and_one_conversion_serves_all(backend, family, reads):
    graphs = import_module(f"fb3.prediction.backends.{backend}")._graphs
    graphs.clear()
    batches = [batch(3, 21), batch(1, 1), batch(1, 64, 1), batch(5, 33, 2), batch(3, 21)]
    models = [scorer(family, reads, seed) for seed in (1, 2)]
    wants = [outputs(model, batches) for model in models]
    assert not torch.allclose(wants[0][0], wants[1][0], atol=0.01)
    for model in models:
        assert use_backend(model, backend, "fp32", "fold")
    assert len(graphs) == 1
    for model, want in zip(models, wants, strict=True):  # the first still has its own weights
        assert model.encoder.run is not None
        torch.testing.assert_close(outputs(model, batches), want, atol=1e-4, rtol=1e-4)
        assert model.encoder.run is not None, "torch took over"


def test_a_window_beyond_the_texts_of_the_conversion_is_kept(backend):
    pytest.importorskip("transformers.models.modernbert")
    torch.manual_seed(0)
    # One token sees eight on each side: of the nine that a conversion sees, all.
    config = AutoConfig.for_model("modernbert", **SMALL, local_attention=16, global_attn_every_n_layers=2)
    encoder = AutoModel.from_config(config).eval()
    use_blocked_attention(encoder)
    model = Scorer(Tower(encoder, MeanPooling(32), SingleWindow()), NoStatistics(32), LinearHead(32, 6)).eval()
    want = outputs(model, [batch(2, 70)])
    taken = use_backend(model, backend, "fp32", "fold")
    assert taken or backend == "openvino", "its conversion gives NaN, which is found"
    torch.testing.assert_close(outputs(model, [batch(2, 70)]), want, atol=1e-4, rtol=1e-4)
    if taken:
        assert model.encoder.run is not None, "torch took over"


def test_two_stitched_encoders_are_both_taken(backend):
    first, second = tower("bert"), tower("deberta-v2", "layers", 1)
    model = StitchedScorer(
        first, second, NoStatistics(0), LinearHead(first.pooling.width + second.pooling.width, 6)
    ).eval()
    both = batch(3, 20) | {f"second_{name}": value for name, value in batch(3, 31, 1).items()}
    want = outputs(model, [both])
    assert use_backend(model, backend, "fp32", "fold")
    torch.testing.assert_close(outputs(model, [both]), want, atol=1e-4, rtol=1e-4)
    assert all(each.encoder.run is not None for each in (model, model.second))


def test_low_precision_is_near_and_its_states_are_float32(backend):
    model, batches = scorer("bert"), [batch(3, 21)]
    want = outputs(model, batches)[0]
    assert use_backend(model, backend, "bf16", "fold")
    got = outputs(model, batches)[0]
    assert got.dtype == torch.float32
    assert (got - want).norm() < 0.05 * want.norm()


def test_a_conversion_that_computes_something_else_is_left_to_torch(backend, capsys):
    model, other, batches = scorer("bert"), scorer("bert", seed=1), [batch(3, 21)]
    want = outputs(model, batches)
    module = import_module(f"fb3.prediction.backends.{backend}")
    module._graphs.clear()
    true, module.bind = module.bind, lambda bare, precision: true(FunctionalEncoder(other.encoder, "last"), precision)
    try:
        assert not use_backend(model, backend, "bf16", "run/fold0")
    finally:
        module.bind = true
    assert f"run/fold0: predict.backend={backend} cannot compute this encoder" in capsys.readouterr().err
    torch.testing.assert_close(outputs(model, batches), want)


def test_where_it_fails_midway_torch_goes_on(backend, capsys):
    model, batches = scorer("bert"), [batch(3, 21)]
    want = outputs(model, batches)
    assert use_backend(model, backend, "fp32", "run/fold0")

    def fails(*arguments):
        raise RuntimeError("no room")

    model.encoder.run = fails
    torch.testing.assert_close(outputs(model, batches), want)
    assert "run/fold0: RuntimeError('no room'); torch goes on, in fp32" in capsys.readouterr().err
    torch.testing.assert_close(outputs(model, batches), want)
    assert not capsys.readouterr().err, "it is said once"


def test_a_wish_is_passed_over_on_gpus_and_auto_is_torch():
    assert pick_backend("auto", CPU) == pick_backend("torch", torch.device("cuda")) == ("torch", "")
    assert pick_backend("onnx", torch.device("cuda:0")) == (
        "torch",
        "predict.backend=onnx is for CPUs; on cuda:0 torch computes",
    )


def test_the_recipe_refuses_a_precision_that_does_nothing():
    with pytest.raises(Fb3Error, match="onnx computes in fp32"):
        load_recipe("tiny", ["predict.backend=onnx", "predict.precision=bf16"])
    assert load_recipe("tiny", ["predict.backend=openvino", "predict.precision=bf16"])


@pytest.fixture(scope="module")
def of(competition, tmp_path_factory):
    """A run with windows, whose recipe names a backend."""

    def make(backend):
        settings = [*TINY, f"predict.backend={backend}", "data.max_length=128"]
        recipe = load_recipe("tiny", [*settings, "data.windows={length: 32}"])
        assert recipe.data.windows == WindowsSettings(length=32)
        return train(recipe, competition, tmp_path_factory.mktemp(backend) / "run", folds=[0]).path

    return make


def predicted(bundle, competition):
    """The test essays' predictions by the bundle's only fold."""
    member = read_bundle(bundle).members()[0]
    essays = read_essays(competition / "test.csv", member.recipe.data)
    return predict_fold(member, 0, encode(member, essays), essays["text_id"].to_numpy(), "cpu", shown=False).values


def test_a_bundle_is_replayed_and_predicts_with_its_backend(of, backend, competition, tmp_path, monkeypatch, capsys):
    graphs = import_module(f"fb3.prediction.backends.{backend}")._graphs
    graphs.clear()
    bundle = write_bundle([of(backend)], tmp_path / "bundle", check=replay(None))
    assert len(graphs) == 1, "the replay did not use it"
    assert max(bundle.manifest["parity"]["largest_difference"].values()) < 0.002
    graphs.clear()
    got = predicted(bundle.path, competition)
    assert len(graphs) == 1, "the inference did not use it"
    table = infer(bundle.path, competition, tmp_path / "s.csv", strict=True)
    assert "torch" not in capsys.readouterr().err, "no fold was left to torch"
    monkeypatch.setattr("fb3.prediction.scorer_prediction.pick_backend", lambda *_: ("torch", ""))
    want = predicted(bundle.path, competition)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert table.iloc[:, 1:].notna().all(axis=None)


@pytest.mark.parametrize("wish", ["openvino", "onnx"])
def test_without_the_library_torch_computes_and_strict_refuses(of, absent, wish, competition, tmp_path, capsys):
    bundle = write_bundle([of(wish)], tmp_path / "bundle", check=replay(None)).path
    said = f"so torch computes; pip install 'fb3[{wish}]'"
    assert capsys.readouterr().err.count(said) == 1
    infer(bundle, competition, tmp_path / "s.csv")
    assert capsys.readouterr().err.count(said) == 1
    with pytest.raises(Fb3Error, match=rf"fb3\[{wish}\]"):
        infer(bundle, competition, tmp_path / "s.csv", strict=True)
