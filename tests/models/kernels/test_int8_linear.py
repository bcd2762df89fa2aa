"""Linear layers in int8: near the exact ones, also beside outliers; right on average; else left alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel

from fb3.models.heads import LinearHead
from fb3.models.kernels.blocked_attention import use_blocked_attention
from fb3.models.kernels.deberta import precompute_position_tables, use_fused_disentangled_attention
from fb3.models.kernels.int8_linear import SHIFT, InputScale, Int8Linear, Quantiser, observe, quantise
from fb3.models.poolings.build import build_pooling, build_window_pooling
from fb3.models.scorer import Scorer, StitchedScorer
from fb3.models.statistics_net import NoStatistics
from fb3.models.towers import Tower
from fb3.recipe.model import PlainPoolingSettings

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
V3 = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True}
BATCH = {
    "input_ids": torch.randint(1, 50, (6, 24), generator=torch.Generator().manual_seed(1)),
    "attention_mask": torch.ones(6, 24, dtype=torch.long),
}


def tower_of(family="bert", **config):
    torch.manual_seed(0)
    more = V3 if family == "deberta-v2" else {}
    config = AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **SMALL, **more, **config)
    encoder = AutoModel.from_config(config).eval()
    for name, weight in encoder.named_parameters():
        if name.endswith("LayerNorm.weight"):
            weight.data[3] = 5.0  # a channel of large numbers, as trained encoders have some
    use_blocked_attention(encoder)
    use_fused_disentangled_attention(encoder)
    pooling = build_pooling(PlainPoolingSettings(kind="mean"), 64, depth=2, vocabulary=50, prompt=range(0))
    return Tower(encoder, pooling, build_window_pooling(None, 64))


def scorer_of(family="bert", **config):
    return Scorer(tower_of(family, **config), NoStatistics(64), LinearHead(64, 3)).eval()


@torch.inference_mode()
def vectors(scorer, batch=BATCH):
    return scorer(batch).pooled


def scales_of(make, low=nn.Module.bfloat16, batch=BATCH):
    """Those of a scorer, and its vectors."""
    exact = make()
    found, mean = observe(exact, lambda: vectors(exact, batch))
    rounded = make()
    for tower in rounded.towers().values():
        low(tower.encoder)
    assert quantise(rounded, found | {SHIFT: torch.zeros_like(mean)})
    _, again = observe(rounded, lambda: vectors(rounded, batch))
    return found | {SHIFT: mean - again}


def in_int8(scorer, scales, low=nn.Module.bfloat16):
    for tower in scorer.towers().values():
        low(tower.encoder)
    assert quantise(scorer, scales)
    return scorer


def layers_of(scorer):
    return [module for module in scorer.modules() if isinstance(module, Int8Linear)]


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 40),
    outlier=st.sampled_from([1.0, 8.0, 40.0]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_a_layer_is_near_the_exact_one(tokens, outlier, bias, dtype, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(64, 48, bias=bias)
    states = torch.randn(2, tokens, 64)
    states[..., 5] = states[..., 5].abs() * outlier
    bounds = torch.stack([states.amin((0, 1)), states.amax((0, 1))])
    with torch.inference_mode():
        exact = linear(states)
        got = Int8Linear(linear.to(dtype), bounds, Quantiser())(states.to(dtype))
    assert got.dtype == dtype
    assert got.shape == exact.shape
    assert (got.float() - exact).norm() < 0.03 * exact.norm()


def test_gelu_goes_on_in_uint8():
    torch.manual_seed(0)
    first, second, states, quantiser = nn.Linear(64, 96), nn.Linear(96, 32), torch.randn(1, 50, 64), Quantiser()
    with torch.inference_mode():
        inner = nn.functional.gelu(first(states))
        exact = second(inner)
        bounds = torch.stack([states.amin((0, 1)), states.amax((0, 1))])
        between = torch.stack([inner.amin(), inner.amax()])[:, None]
        passed = Int8Linear(first, bounds, quantiser, "gelu", between)(states)
        got = Int8Linear(second, between, quantiser)(passed)
    assert passed.dtype == torch.uint8
    assert (got - exact).norm() < 0.03 * exact.norm()


def test_what_was_quantised_last_is_taken_for_nothing_else():
    quantiser, one, two = Quantiser(), torch.randn(3, 8), torch.randn(3, 8)
    how = InputScale(torch.ones(8), 0.05, 100)
    first = quantiser(one, how)
    kept = first.clone()
    assert quantiser(one, InputScale(torch.ones(8), 0.05, 100)) is first
    for states, other in (
        (two, how),
        (one, how._replace(scale=0.1)),
        (one, how._replace(zero=90)),
        (one, how._replace(factor=torch.full((8,), 2.0))),
    ):
        quantiser(one, how)  # the last before each
        exact = (states * other.factor / other.scale).round().add(other.zero).clamp(0, 255)
        assert not torch.equal(quantiser(states, other), kept)
        assert torch.equal(quantiser(states, other).float(), exact)
    assert torch.equal(first, kept), "still as it was"


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "deberta-v2", "distilbert"])
@pytest.mark.parametrize("low", [nn.Module.bfloat16, nn.Module.float])
def test_an_encoder_stays_near_to_fp32(family, low):
    linears = sum(type(module) is nn.Linear for module in scorer_of(family).encoder.modules())
    scales = scales_of(lambda: scorer_of(family), low)
    scorer = in_int8(scorer_of(family), scales, low)
    assert len(layers_of(scorer)) == linears
    exact, got = vectors(scorer_of(family)), vectors(scorer)
    assert 0 < (got - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("low", [nn.Module.bfloat16, nn.Module.float])
def test_position_tables_are_the_same_precomputed(low):
    def make():
        return scorer_of("deberta-v2")

    scorer = in_int8(make(), scales_of(make, low), low)
    before = vectors(scorer)
    precompute_position_tables(scorer.encoder)
    assert torch.equal(vectors(scorer), before)


def test_the_vectors_are_right_on_average():
    scales = scales_of(scorer_of)
    exact = vectors(scorer_of()).mean(0)
    with_shift = in_int8(scorer_of(), scales)
    heard = []
    with_shift.head.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    vectors(with_shift)
    torch.testing.assert_close(heard[0].mean(0), exact, atol=1e-5, rtol=1e-5)
    assert scales[SHIFT].abs().max() > 1e-4


def test_an_essay_is_scored_alike_whoever_stands_beside_it():
    scorer = in_int8(scorer_of(), scales_of(scorer_of, nn.Module.float), nn.Module.float)
    embeddings = scorer.encoder.get_input_embeddings().weight
    embeddings.data[49] *= 30  # the last essay is far from all others
    batch = {name: value.clone() for name, value in BATCH.items()}
    batch["input_ids"][:5] = batch["input_ids"][:5] % 48 + 1
    batch["input_ids"][5, ::2] = 49
    batch["attention_mask"][0, 10:] = 0
    together = vectors(scorer, batch)
    for essay in range(6):
        alone = vectors(scorer, {name: value[essay : essay + 1] for name, value in batch.items()})
        torch.testing.assert_close(alone[0], together[essay], rtol=1e-4, atol=1e-5)


def test_two_encoders_have_scales_of_their_own():
    def make():
        return StitchedScorer(tower_of(), tower_of("roberta"), NoStatistics(128), LinearHead(128, 3)).eval()

    batch = BATCH | {f"second_{name}": value for name, value in BATCH.items()}
    scales = scales_of(make, batch=batch)
    assert {name.split(".")[0] for name in scales} >= {"second", SHIFT}
    exact, got = vectors(make(), batch), vectors(in_int8(make(), scales), batch)
    assert 0 < (got - exact).norm() < 0.03 * exact.norm()


def test_a_few_large_numbers_after_gelu_are_cut_off():
    batch = {"input_ids": torch.randint(1, 50, (32, 128)), "attention_mask": torch.ones(32, 128, dtype=torch.long)}
    scorer, layer = scorer_of(), "encoder.layer.0.output.dense"

    def bounds():
        return observe(scorer, lambda: vectors(scorer, batch))[0][layer]

    usual = bounds()

    def spoil(_, given):
        given[0].view(-1)[0] = 4 * usual[1]

    scorer.encoder.get_submodule(layer).register_forward_pre_hook(spoil)
    assert usual.shape == (2, 1)
    assert 0.5 * usual[1] < bounds()[1] < 3.9 * usual[1], "one number among hundreds of thousands"


def test_an_encoder_that_looks_at_its_weights_is_left_as_it_was(capsys):
    scales = scales_of(scorer_of)
    scorer = scorer_of()
    before = vectors(scorer)
    output = scorer.encoder.encoder.layer[1].output
    forward = output.forward
    output.forward = lambda *given: forward(*given) + 0 * output.dense.weight.sum()
    assert not quantise(scorer, scales)
    assert "not in int8" in capsys.readouterr().err
    assert not layers_of(scorer)
    torch.testing.assert_close(vectors(scorer), before)
