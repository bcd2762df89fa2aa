"""Blocked attention: equal to torch's own in fp32, forward and backward; as near as bf16 goes in real encoders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from fb3.models.kernels import attention_blocks
from fb3.models.kernels import blocked_attention as attention
from fb3.models.kernels.blocked_attention import blocked_attention, use_blocked_attention

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def leaves(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).transpose(1, 2).requires_grad_() for _ in range(3)]


@settings(deadline=None, max_examples=40)
@given(
    essays=st.integers(1, 3),
    tokens=st.integers(1, 20),
    heads=st.integers(1, 5),
    at_once=st.integers(1, 5),
    per_head=st.booleans(),
    per_query=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_formula_with_its_gradients(essays, tokens, heads, at_once, per_head, per_query, seed):
    states = leaves(essays, tokens, heads, 6, seed=seed)
    bias = torch.randn(essays, heads if per_head else 1, tokens if per_query else 1, tokens)
    slope = torch.randn(essays, heads, tokens, 6)
    limit, attention_blocks._BLOCK_BYTES = attention_blocks._BLOCK_BYTES, at_once * tokens * tokens * 4
    try:
        out = blocked_attention(*states, bias, 0.3)
        gradients = torch.autograd.grad(out, states, slope)
        with torch.inference_mode():
            silent = blocked_attention(*states, bias, 0.3)
    finally:
        attention_blocks._BLOCK_BYTES = limit
    query, key, value = states
    plain = (0.3 * query @ key.mT + bias).softmax(-1) @ value
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(silent, plain.detach())
    for mine, theirs in zip(gradients, torch.autograd.grad(plain, states, slope), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("family", ["bert", "electra", "roberta"])
def test_an_encoder_in_bf16_stays_as_near_to_fp32_as_with_torchs_attention(family, monkeypatch):
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **SMALL)).eval()
    ids = torch.randint(1, 50, (3, 24))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0

    def states(dtype):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].float()

    exact, theirs = states(torch.float32), states(torch.bfloat16)
    if not use_blocked_attention(encoder):
        pytest.skip("this version of transformers has no attention interface for it")
    calls = []
    real = attention.blocked_attention
    monkeypatch.setattr(attention, "blocked_attention", lambda *args: calls.append(1) or real(*args))
    mine = states(torch.bfloat16)
    assert len(calls) == 2, "one a layer"
    assert (mine - exact).norm() < 1.5 * (theirs - exact).norm()
    calls.clear()
    torch.testing.assert_close(states(torch.float32), exact)
    assert not calls, "fp32 stays with torch's own"


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), room=st.integers(0, 5), seed=st.integers(0, 99))
def test_padding_on_the_right_is_seen_by_nobody(lengths, room, seed):
    tokens = max(lengths) + room
    query, key, value = (states.detach() for states in leaves(len(lengths), tokens, 3, 6, seed=seed))
    bias = torch.zeros(len(lengths), 1, 1, tokens)
    for essay, length in enumerate(lengths):
        bias[essay, ..., length:] = torch.finfo(bias.dtype).min
    with torch.inference_mode():
        out = blocked_attention(query, key, value, bias, 0.3)
    plain = (0.3 * query @ key.mT + bias).softmax(-1) @ value
    for essay, length in enumerate(lengths):
        torch.testing.assert_close(out[essay, :, :length], plain[essay, :, :length])
    assert out.isfinite().all()


def test_an_encoder_with_attention_of_its_own_is_left_alone():
    config = AutoConfig.for_model("deberta-v2", vocab_size=50, **SMALL)
    encoder = AutoModel.from_config(config)
    assert not use_blocked_attention(encoder)
    assert encoder.config._attn_implementation == "eager"


def test_the_saved_config_does_not_name_it(tmp_path):
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=50, **SMALL))
    use_blocked_attention(encoder)
    encoder.config.save_pretrained(tmp_path)
    assert "fb3" not in (tmp_path / "config.json").read_text()


def test_a_token_that_sees_nothing_gets_a_number():
    """As a padding token far from all others does, under a sliding window; others multiply what it gets by nought."""
    states = [state.detach().bfloat16() for state in leaves(2, 12, 3, 8)]
    hidden = torch.zeros(2, 1, 12, 12, dtype=torch.bfloat16)
    hidden[1, :, 9:] = torch.finfo(torch.bfloat16).min
    with torch.inference_mode():
        out = blocked_attention(*states, hidden, 0.3)
    query, key, value = (state.float() for state in states)
    plain = (0.3 * query @ key.mT).softmax(-1) @ value
    assert out.isfinite().all()
    torch.testing.assert_close(out[1, :, :9].float(), plain[1, :, :9], rtol=0.05, atol=0.05)


@pytest.mark.skipif("modernbert" not in CONFIG_MAPPING, reason="this transformers has no ModernBERT")
def test_sliding_windows_beside_much_padding():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "modernbert", vocab_size=50, pad_token_id=0, local_attention=8, **SMALL | {"num_hidden_layers": 4}
    )
    encoder = AutoModel.from_config(config).eval()
    ids, mask = torch.randint(3, 50, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[1, 10:] = 0
    with torch.inference_mode():
        exact = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        use_blocked_attention(encoder)
        found = encoder.bfloat16()(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    torch.testing.assert_close(found[mask.bool()], exact[mask.bool()], rtol=0.1, atol=0.1)
