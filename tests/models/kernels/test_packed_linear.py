"""Packed linear layers: the same outputs, GELU inside, and left alone where they cannot be."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from fb3.models.kernels.packed_linear import PackedLinear, pack_linears

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS = torch.randint(1, 50, (3, 24), generator=torch.Generator().manual_seed(1))


def encoder_of(family, dtype=torch.bfloat16, **config):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **SMALL, **config)
    return AutoModel.from_config(config).eval().to(dtype)


@torch.inference_mode()
def states(encoder):
    return encoder(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state.float()


def packed_in(encoder):
    return [module for module in encoder.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("tokens", [1, 7, 5000])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_linear_layer_to_bf16(tokens, bias):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias).bfloat16()
    given = torch.randn(2, tokens, 24).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(given), linear(given))
        with_gelu = PackedLinear(linear, "gelu")(given)
        exact = nn.functional.gelu(linear.float()(given.float()))
    torch.testing.assert_close(with_gelu.float(), exact, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "deberta-v2", "distilbert"])
def test_an_encoder_stays_as_near_to_fp32(family):
    exact, plain, packed = states(encoder_of(family, torch.float32)), encoder_of(family), encoder_of(family)
    linears = sum(type(module) is nn.Linear for module in plain.modules())
    pack_linears(packed)
    assert len(packed_in(packed)) == linears
    error, usual = ((states(e) - exact).norm() for e in (packed, plain))
    assert 0 < error < 1.3 * usual


def test_gelu_goes_into_the_layer_before_it_and_other_activations_stay():
    exact, rounded = encoder_of("bert"), encoder_of("bert", hidden_act="gelu_new")
    for encoder, wanted in ((exact, 2), (rounded, 0)):
        pack_linears(encoder)
        assert sum(module._activation == "gelu" for module in packed_in(encoder)) == wanted


def test_only_bf16_is_packed():
    encoder = encoder_of("bert", torch.float32)
    pack_linears(encoder)
    assert not packed_in(encoder)


def test_an_encoder_that_looks_at_its_weights_is_left_as_it_was():
    encoder = encoder_of("bert")
    before = states(encoder)
    dense = encoder.encoder.layer[1].output
    forward = dense.forward
    dense.forward = lambda *given: forward(*given) + 0 * dense.dense.weight.sum()
    pack_linears(encoder)
    assert not packed_in(encoder)
    assert type(encoder.encoder.layer[0].intermediate.intermediate_act_fn) is not nn.Identity
    torch.testing.assert_close(states(encoder), before)
