"""Fused disentangled attention: as transformers' eager one, in real encoders from configs, forward and backward."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from fb3.models.kernels import attention_blocks, deberta
from fb3.models.kernels import disentangled_attention as disentangled
from fb3.models.kernels.deberta import precompute_position_tables, use_fused_disentangled_attention
from fb3.models.kernels.disentangled_attention import disentangled_attention, rows_by_distance
from fb3.models.layer_stack import layer_stack
from fb3.models.mixout import mix_out
from fb3.models.surgery import operate
from fb3.recipe.model import ModelSettings, PlainPoolingSettings

V3 = {
    "vocab_size": 50,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "max_relative_positions": -1,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BOTH = ["c2p", "p2c"]


def check_equal(eager, fused, inputs):
    """The same values and all gradients, and the same values at inference, with precomputed tables and without."""
    (mine, my_slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
    close(mine, theirs)
    assert my_slopes.keys() == their_slopes.keys()
    for name, slope in their_slopes.items():
        close(my_slopes[name], slope, name)
    with torch.inference_mode():
        close(states(fused.eval(), inputs), theirs)
        precompute_position_tables(fused)
        close(states(fused, inputs), theirs)


def check_near(eager, fused, inputs, dtype):
    """In low precision as near to fp32, values and gradients, as transformers' own."""
    exact, slopes = gradients(eager, inputs)
    eager.to(dtype)
    fused.to(dtype)
    (mine, my_slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
    with torch.inference_mode():
        silent = states(fused.eval(), inputs)
        precompute_position_tables(fused)
        assert torch.equal(states(fused, inputs), silent)
    assert 0 < distance(mine, exact) < 1.5 * distance(theirs, exact)
    assert 0 < distance(silent, exact) < 1.5 * distance(theirs, exact)
    for name in ("input", "encoder.rel_embeddings.weight", *(n for n in slopes if "_proj.weight" in n)):
        assert distance(my_slopes[name], slopes[name]) < 1.5 * distance(their_slopes[name], slopes[name]), name


@pytest.fixture(params=["blocks", "at once"])
def way(request, monkeypatch):
    """By blocks as on a CPU, and in one piece as elsewhere."""
    if request.param == "at once":
        monkeypatch.setattr(disentangled, "_BLOCKED", ())
    else:
        monkeypatch.setattr(attention_blocks, "_TILE", {torch.float32: 7, torch.float64: 3})
    return request.param


def encoder_of(seed=0, **changes):
    torch.manual_seed(seed)
    encoder = AutoModel.from_config(AutoConfig.for_model("deberta-v2", **V3 | changes))
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if "rel_embeddings" in name or "_proj" in name:
                p.mul_(8)  # so that positions matter
    return encoder


def pair(**changes):
    eager = encoder_of(**changes)
    fused = copy.deepcopy(eager)
    assert use_fused_disentangled_attention(fused)
    return eager, fused


def batch(tokens, essays=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (essays, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, tokens // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def states(encoder, inputs):
    """Of real tokens; what padding becomes is of no matter."""
    return encoder(**inputs).last_hidden_state[inputs["attention_mask"].bool()]


def gradients(encoder, inputs):
    """Of all weights and of the embedded tokens."""
    encoder.zero_grad()
    given = inputs["input_ids"]
    embedded = encoder.get_input_embeddings()(given).detach().requires_grad_()
    rest = {key: value for key, value in inputs.items() if key != "input_ids"}
    out = encoder(inputs_embeds=embedded, **rest).last_hidden_state[inputs["attention_mask"].bool()]
    out.float().sin().sum().backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return out.detach(), {"input": embedded.grad, **found}


def close(mine, theirs, what=""):
    torch.testing.assert_close(
        mine, theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.abs().max().item()), msg=what or None
    )


def distance(mine, exact):
    return (mine.double() - exact.double()).norm().item()


@pytest.mark.parametrize("tokens", [1, 2, 9, 45])
@pytest.mark.parametrize("kinds", [BOTH, ["c2p"], ["p2c"]], ids="+".join)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("buckets", [8, 256, -1])
def test_it_equals_transformers_own_with_all_gradients(tokens, kinds, share, buckets, way):
    eager, fused = pair(pos_att_type=kinds, share_att_key=share, position_buckets=buckets)
    check_equal(eager, fused, batch(tokens))


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(1, 40),
    essays=st.integers(2, 4),
    heads=st.sampled_from([1, 2, 4]),
    buckets=st.sampled_from([-1, 4, 16]),
    farthest=st.sampled_from([-1, 12, 64]),
    tile=st.integers(1, 50),
    at_once=st.integers(1, 5),
    norm=st.sampled_from(["none", "layer_norm"]),
    seed=st.integers(0, 99),
)
def test_any_shape(tokens, essays, heads, buckets, farthest, tile, at_once, norm, seed):
    changes = {"num_attention_heads": heads, "position_buckets": buckets, "max_relative_positions": farthest}
    eager, fused = pair(seed=seed, norm_rel_ebd=norm, **changes)
    inputs = batch(tokens, essays, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_blocks, "_TILE", {torch.float32: tile})
        patch.setattr(attention_blocks, "_BLOCK_BYTES", at_once * tokens * tokens * 4)
        (mine, my_slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
        with torch.inference_mode():
            close(states(fused.eval(), inputs), theirs)
    close(mine, theirs)
    for name, slope in their_slopes.items():
        close(my_slopes[name], slope, name)


@pytest.mark.parametrize("by", ["weights", "autocast"])
def test_in_bf16_it_stays_as_near_to_fp32_as_transformers_own(by, way):
    eager, fused = pair(share_att_key=False, num_hidden_layers=4)
    inputs = batch(45)
    exact, slopes = gradients(eager, inputs)
    if by == "weights":
        eager.bfloat16()
        fused.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=by == "autocast"):
        (mine, my_slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
        with torch.inference_mode():
            silent = states(fused.eval(), inputs)
            precompute_position_tables(fused)
            assert torch.equal(states(fused, inputs), silent)
    assert 0 < distance(mine, exact) < 1.5 * distance(theirs, exact)
    assert 0 < distance(silent, exact) < 1.5 * distance(theirs, exact)
    for name in ("input", "encoder.rel_embeddings.weight", *(n for n in slopes if "_proj.weight" in n)):
        assert distance(my_slopes[name], slopes[name]) < 1.5 * distance(their_slopes[name], slopes[name]), name


def operands(tokens=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, tokens, 3, 4)] * 3 + [(8, 3, 4)] * 2
    query, key, value, to_keys, to_queries = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    leaves = [t.transpose(1, 2).requires_grad_() for t in (query, key, value)]
    leaves += [to_keys.requires_grad_(), to_queries.requires_grad_()]
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, -2:] = 0
    return leaves, mask


def attend(leaves, mask, dropout, seed):
    query, key, value, *tables = leaves
    torch.manual_seed(seed)
    rows = rows_by_distance(query.shape[2], 4, 4, 16, torch.device("cpu"))
    return disentangled_attention(query, key, value, tuple(tables), rows, mask, 0.4, dropout)


@pytest.mark.parametrize(("dropout", "tokens"), [(0.0, 6), (0.4, 6), (0.0, 5), (0.0, 3)])
def test_its_gradient_is_that_of_its_values(dropout, tokens, way):
    leaves, mask = operands(tokens)
    assert torch.autograd.gradcheck(lambda *given: attend(given, mask, dropout, 0), leaves)


@pytest.mark.parametrize("tokens", [1, 4, 5, 8, 9])
def test_at_once_the_products_rows_are_aligned_and_their_padding_is_never_read(tokens):
    leaves, mask = operands(tokens)
    query, real = leaves[0].detach(), 2 * tokens - 1
    products = disentangled._products(query, torch.randn(real, 3, 4, dtype=query.dtype))
    assert products.shape[2] % 8 == 0
    assert products.shape[2] - real < 8
    plain, padded = products[..., :real].contiguous().requires_grad_(), products.clone()
    padded[..., real:] = torch.nan
    bias, expected = (
        disentangled._PositionBias.apply(given.requires_grad_(), None, mask == 0) for given in (padded, plain)
    )
    assert torch.equal(bias, expected)
    slope = torch.randn_like(bias)
    found, exact = torch.autograd.grad(bias, padded, slope)[0], torch.autograd.grad(expected, plain, slope)[0]
    assert torch.equal(found[..., :real], exact)
    assert not found[..., real:].any()


def test_values_of_another_width(way):
    leaves, mask = operands()
    leaves[2] = torch.randn(2, 6, 3, 7, dtype=torch.float64).transpose(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: attend(given, mask, 0.0, 0), leaves)
    with torch.no_grad():
        whole = attend(leaves, mask, 0.0, 0)
        parts = [attend([*leaves[:2], some, *leaves[3:]], mask, 0.0, 0) for some in leaves[2].split([4, 3], 3)]
        close(torch.cat(parts, 3), whole)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=2),
    gap=st.booleans(),
    tile=st.sampled_from([2, 5, 128]),
)
def test_without_a_gradient_nothing_changes(tokens, lengths, gap, tile):
    leaves, _ = operands(tokens)
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    mask[0, 0] = not gap or tokens == 1 or lengths[0] == 1  # hidden on the left: no longer padding
    usual, attention_blocks._TILE[torch.float64] = attention_blocks._TILE[torch.float64], tile
    try:
        whole = attend(leaves, mask, 0.0, 0).detach()
        with torch.no_grad():
            silent = attend(leaves, mask, 0.0, 0)
    finally:
        attention_blocks._TILE[torch.float64] = usual
    seen = mask.bool()[:, None, :, None].expand_as(whole)
    close(silent[seen], whole[seen])
    assert silent.isfinite().all()


@pytest.mark.parametrize("grad", [True, False])
def test_dropout_keeps_the_mean_and_obeys_the_seed(grad, way):
    leaves, mask = operands(dtype=torch.float32)
    with torch.set_grad_enabled(grad):
        whole = attend(leaves, mask, 0.0, 0).detach()
        drawn = torch.stack([attend(leaves, mask, 0.4, seed).detach() for seed in range(1500)])
        assert torch.equal(attend(leaves, mask, 0.4, 7), drawn[7])
    assert not torch.allclose(drawn[0], drawn[1])
    assert ((drawn.mean(0) - whole).abs() <= 6 * drawn.std(0) / len(drawn) ** 0.5).all()


def test_in_training_all_dropouts_of_the_encoder_work():
    _, fused = pair(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    inputs = batch(12)

    def drawn(seed):
        torch.manual_seed(seed)
        return states(fused.train(), inputs)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.allclose(drawn(0), drawn(1))
    before = drawn(0)
    for layer in fused.encoder.layer:
        layer.attention.self.pos_dropout.p = 0.0
    assert not torch.allclose(drawn(0), before), "the position embeddings are dropped, too"


def test_checkpointing_gives_the_same_gradients(way):
    _, fused = pair(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    inputs = batch(12)
    fused.train()
    torch.manual_seed(0)
    out, whole = gradients(fused, inputs)
    fused.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(0)
    again, slopes = gradients(fused, inputs)
    close(again, out)
    for name, slope in whole.items():
        close(slopes[name], slope, name)


def projections(encoder):
    """Counts the calls of the position projections, from now on."""
    calls = []
    for layer in layer_stack(encoder):
        for module in (layer.attention.self.pos_key_proj, layer.attention.self.pos_query_proj):
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_tables_are_projected_once_a_forward_and_precomputed_once_at_all():
    _, fused = pair(share_att_key=False)
    calls = projections(fused)
    states(fused, batch(9))
    assert len(calls) == 4, "two for each of two layers, however many essays"
    calls.clear()
    precompute_position_tables(fused.eval())
    for tokens in (9, 20, 9):
        with torch.inference_mode():
            states(fused, batch(tokens))
    assert len(calls) == 4


def _step(encoder):
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(1.5)


def _optimise(encoder):
    optimizer = torch.optim.AdamW(encoder.parameters(), 0.1, foreach=True)
    for p in encoder.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def _average(encoder):
    for p in encoder.parameters():
        p.data = p.data * 1.5


def _unseen(encoder):
    """Writes that torch does not count; a training step has read the weights since."""
    gradients(encoder, batch(5))
    for p in encoder.parameters():
        p.data.mul_(1.5)


CHANGES = {
    "in place": _step,
    "optimizer": _optimise,
    "swapped": _average,
    "training between": _unseen,
    "loaded": lambda e: e.load_state_dict({k: v * 1.5 for k, v in e.state_dict().items()}),
    "assigned": lambda e: e.load_state_dict({k: v * 1.5 for k, v in e.state_dict().items()}, assign=True),
    "one weight": lambda e: torch.nn.init.normal_(e.encoder.layer[0].attention.self.pos_query_proj.bias),
    "positions": lambda e: torch.nn.init.normal_(e.encoder.rel_embeddings.weight),
    "double": lambda e: e.double(),
    "bf16": lambda e: e.bfloat16(),
    "there and back": lambda e: _step(e.double()) or e.float(),
}


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_inference_sees_the_current_weights(change, mode, norm):
    _, fused = pair(share_att_key=False, norm_rel_ebd=norm)
    fused.eval()
    inputs = batch(12)
    for _ in range(2):  # also after the first change
        with mode():
            states(fused, inputs)
        CHANGES[change](fused)
        with mode():
            found = states(fused, inputs)
        fresh = encoder_of(share_att_key=False, norm_rel_ebd=norm).to(found.dtype).eval()
        fresh.load_state_dict(fused.state_dict())
        assert use_fused_disentangled_attention(fresh)
        with mode():
            assert torch.equal(found, states(fresh, inputs))


@pytest.mark.parametrize("share", [True, False])
def test_precomputed_tables_are_dropped_by_a_training_and_see_its_weights(share):
    _, fused = pair(share_att_key=share)
    inputs = batch(31)
    rows_by_distance.cache_clear()
    precompute_position_tables(fused.eval())
    with torch.inference_mode():
        before = states(fused, inputs)
    copied = copy.deepcopy(fused)
    _, slopes = gradients(fused.train(), inputs)
    assert slopes["encoder.rel_embeddings.weight"].abs().sum() > 0
    _step(fused)
    fresh = encoder_of(share_att_key=share).eval()
    fresh.load_state_dict(fused.state_dict())
    with torch.inference_mode():
        close(states(fused.eval(), inputs), states(fresh, inputs))
        precompute_position_tables(fused)
        close(states(fused, inputs), states(fresh, inputs))
        assert torch.equal(states(copied, inputs), before), "a copy keeps its own"


def test_precomputed_tables_move_with_the_encoder_and_are_no_weights():
    _, fused = pair()
    names = list(fused.state_dict())
    precompute_position_tables(fused.eval())
    assert list(fused.state_dict()) == names
    inputs = batch(12)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        fused.to(dtype)
        fresh = encoder_of().to(torch.float64).eval()
        fresh.load_state_dict(fused.state_dict())
        with torch.inference_mode():
            off = distance(states(fused, inputs), exact := states(fresh, inputs))
        assert off < (0.05 if dtype == torch.bfloat16 else 1e-4) * exact.norm()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low", [True, False])
def test_precomputed_tables_are_those_of_each_forward_under_autocast(weights, low):
    _, fused = pair(share_att_key=False)
    fused.eval().to(weights)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        plain = states(fused, batch(12))
        precompute_position_tables(fused)
        assert torch.equal(states(fused, batch(12)), plain)


def test_precomputed_in_fp32_they_serve_an_autocast_too():
    _, fused = pair()
    fused.eval()
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            plain = states(fused, batch(12))
        precompute_position_tables(fused)
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(states(fused, batch(12)), plain) < 0.05 * plain.norm()


def test_other_encoders_have_no_tables_to_precompute():
    eager = encoder_of()
    precompute_position_tables(eager)
    assert not hasattr(eager.encoder.layer[0].attention.self, "position_keys")


def test_names_and_weights_stay():
    eager, fused = pair(share_att_key=False)
    assert list(eager.state_dict()) == list(fused.state_dict())
    assert [n for n, _ in eager.named_modules()] == [n for n, _ in fused.named_modules()]
    assert use_fused_disentangled_attention(fused), "a second time, too"


def test_states_of_layers_and_attentions_as_before():
    eager, fused = pair(num_hidden_layers=3, conv_kernel_size=3)
    inputs = batch(20)
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        mine, theirs = (e.eval()(**inputs, output_hidden_states=True) for e in (fused, eager))
        assert len(mine.hidden_states) == len(theirs.hidden_states) == 4
        for a, b in zip(mine.hidden_states, theirs.hidden_states, strict=True):
            close(a[real], b[real])
        silent = fused(**inputs)
        assert silent.hidden_states is None
        assert torch.equal(silent.last_hidden_state, mine.last_hidden_state)
        kept = []
        fused.encoder.register_forward_hook(lambda m, i, out: kept.append(len(out[1])))
        assert len(fused(**inputs, return_dict=False)) == 1
        fused(**inputs)
        fused(**inputs, output_hidden_states=True)
        assert kept == [1, 1, 4], "only what is wanted is kept"
        mine, theirs = (e(**inputs, output_attentions=True) for e in (fused, eager))
        for a, b in zip(mine.attentions, theirs.attentions, strict=True):
            rows = real[:, None, :, None].expand_as(a)
            close(a[rows], b[rows])
        eager, fused = pair()
        causal = torch.tril(torch.ones(3, 20, 20))
        given = torch.randn(3, 20, 32)
        close(*(e.encoder(given, causal, output_hidden_states=True).last_hidden_state for e in (fused, eager)))


def test_a_mask_over_everything_gives_numbers():
    _, fused = pair()
    inputs = batch(9)
    inputs["attention_mask"][1] = 0
    assert fused(**inputs).last_hidden_state.isfinite().all()


def test_fp16_with_large_queries_does_not_overflow(way):
    leaves, mask = operands(dtype=torch.float32)
    leaves = [t.detach() for t in leaves]
    large = [t * 120 for t in leaves[:2]] + [leaves[2]] + [t * 20 for t in leaves[3:]]
    out = attend([t.half() for t in large], mask, 0.0, 0)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pos_att_type": ["c2p", "p2p"]}, "pos_att_type"),
        ({"pos_att_type": []}, "pos_att_type"),
        ({"relative_attention": False}, "relative_attention=false"),
        ({"talking_head": True}, "talking_head"),
    ],
)
def test_what_it_cannot_run_is_left_alone_and_said(change, why, capsys):
    encoder = encoder_of(**change)
    kinds = [type(m) for m in encoder.modules()]
    assert not use_fused_disentangled_attention(encoder)
    assert [type(m) for m in encoder.modules()] == kinds
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_other_versions_and_other_encoders_are_left_alone(capsys, monkeypatch):
    bert = AutoConfig.for_model("bert", **{k: V3[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")})
    bert.num_attention_heads, bert.intermediate_size = 4, 32
    assert not use_fused_disentangled_attention(AutoModel.from_config(bert))
    assert not capsys.readouterr().err, "nothing is missing there"
    encoder = encoder_of()

    class Own(type(encoder.encoder.layer[1].attention.self)):
        pass

    encoder.encoder.layer[1].attention.self.__class__ = Own
    assert not use_fused_disentangled_attention(encoder)
    assert "differently" in capsys.readouterr().err
    monkeypatch.setattr(deberta, "_ARGUMENTS", ("self", "states"))
    assert not use_fused_disentangled_attention(encoder_of())
    assert "differently" in capsys.readouterr().err


def test_mixout_frozen_and_dropped_layers_go_with_it():
    chosen = ModelSettings(mixout=0.5, freeze_layers=1, pooling=PlainPoolingSettings(kind="mean"))
    eager, fused = encoder_of(share_att_key=False), encoder_of(share_att_key=False)
    for encoder in (eager, fused):
        operate(encoder, chosen)
        mix_out(encoder, chosen)
    assert use_fused_disentangled_attention(fused)
    _step(eager)
    _step(fused)
    inputs = batch(12)
    close(states(fused.eval(), inputs), states(eager.eval(), inputs))
    torch.manual_seed(0)
    first = states(fused.train(), inputs)
    assert not torch.allclose(first, states(fused, inputs)), "drawn anew"
    mixed = [m for n, m in fused.named_modules() if n.endswith("1.attention.self.pos_key_proj")]
    first.sum().backward()
    assert mixed[0].weight.grad is not None
    assert all(p.grad is None for p in fused.encoder.layer[0].parameters())
    operate(fused, ModelSettings(layer_drop=0.999999, pooling=PlainPoolingSettings(kind="mean")))
    out = fused(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(out[-1], out[-2])


def test_a_scorer_is_built_with_it(run, tiny):
    from fb3.models.build import build_scorer

    for init in ("config", "empty"):
        scorer = build_scorer(tiny, run / "encoder", init=init)
        assert isinstance(scorer.encoder.encoder, deberta.FusedStack)
