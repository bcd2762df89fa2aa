"""Re-initialised layers and stochastic depth on real encoders from configs."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from fb3.errors import Fb3Error
from fb3.models.layer_stack import depth_of_parameters, layer_stack
from fb3.models.surgery import operate, reinitialise
from fb3.recipe.model import ModelSettings, PlainPoolingSettings
from tests.models.sized import SMALL, sized

FAMILIES = ["bert", "deberta-v2", "electra", "roberta"]


def encoder_of(family):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **SMALL))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_top_layers_start_at_random_and_the_others_stay(family):
    encoder = encoder_of(family)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(0.5)
    reinitialise(encoder, 2)
    low, middle, top = layer_stack(encoder)
    assert all((p == 0.5).all() for p in low.parameters())
    for layer in (middle, top):
        for name, p in layer.named_parameters():
            assert not (p == 0.5).any(), name
            if name.endswith("bias"):
                assert (p == 0).all(), name
            elif p.ndim > 1:
                assert p.std().item() == pytest.approx(0.02, rel=0.2), name
            else:
                assert (p == 1).all(), name
    assert not torch.equal(next(middle.parameters()), next(top.parameters()))


def test_more_layers_than_there_are():
    with pytest.raises(Fb3Error, match=r"model\.reinit_layers=4: BertModel has 3 layers"):
        reinitialise(encoder_of("bert"), 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_layer_hands_its_input_on_in_training_only(family):
    encoder = encoder_of(family)
    ids = torch.randint(1, 50, (2, 7))
    encoder.eval()
    whole = encoder(input_ids=ids).last_hidden_state
    operate(encoder, ModelSettings(layer_drop=0.999999, pooling=PlainPoolingSettings(kind="mean")))
    torch.testing.assert_close(encoder(input_ids=ids).last_hidden_state, whole)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "drop_prob"):
            module.p = module.drop_prob = 0.0
    encoder.train()
    torch.manual_seed(0)
    states = encoder(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], states[-2]), "the top layer is dropped always"
    torch.manual_seed(0)
    kept = sum(not torch.equal(a[0], b[0]) for a, b in _first_layers(encoder, ids))
    assert 16 < kept < 37, "the lowest of three is dropped a third of the time"


def _first_layers(encoder, ids):
    for _ in range(40):
        states = encoder(input_ids=ids, output_hidden_states=True).hidden_states
        yield states[0], states[1]


@pytest.mark.parametrize("family", ["t5", "modernbert", "deberta", "deberta-v2", "convbert", "funnel", "xlnet"])
def test_every_weight_starts_as_the_encoder_itself_starts_it(family):
    encoder = sized(family)
    own = {name: p.detach().clone() for name, p in layer_stack(encoder)[-1].named_parameters()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(0.5)  # stands for what a pretraining left
    reinitialise(encoder, 1)
    for name, p in layer_stack(encoder)[-1].named_parameters():
        if own[name].std() == 0:
            assert torch.equal(p, own[name]), name
        else:
            assert p.std().item() == pytest.approx(own[name].std().item(), rel=0.5), name


def test_a_norm_or_bias_that_the_encoders_rule_passes_over_starts_anew(monkeypatch):
    """Early versions of transformers start linear layers and embeddings of a DeBERTa, and nothing else."""
    encoder = sized("deberta")
    rule = encoder._init_weights
    known = (torch.nn.Linear, torch.nn.Embedding)
    monkeypatch.setattr(encoder, "_init_weights", lambda module: rule(module) if isinstance(module, known) else None)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(0.5)
    reinitialise(encoder, 1)
    own = dict(layer_stack(encoder)[-1].named_parameters())
    assert {name for name in own if name.endswith(("q_bias", "v_bias"))}
    for name, p in own.items():
        if p.ndim == 1:
            assert (p == (1 if name.endswith("LayerNorm.weight") else 0)).all(), name


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2", "t5", "squeezebert"])
def test_who_looks_within_the_layers_forward_sees_that_it_is_dropped(family):
    """Version 5.0 of transformers takes the states that layer poolings read from there."""
    encoder = sized(family)
    kind = "pooler" if getattr(encoder, "pooler", None) else "mean"
    operate(encoder, ModelSettings(layer_drop=0.999999, pooling=PlainPoolingSettings(kind=kind)))
    top, seen = layer_stack(encoder)[-1], []
    forward = top.forward

    def recorded(*inputs, **named):
        output = forward(*inputs, **named)
        first = next(iter(output.values())) if isinstance(output, dict) else output
        seen.append((inputs[0], first[0] if isinstance(first, tuple) else first))
        return output

    top.forward = recorded
    ids = torch.randint(1, 50, (2, 7))
    encoder.train()(input_ids=ids)
    encoder.eval()(input_ids=ids)
    (given, handed_on), (before, after) = seen
    assert torch.equal(given, handed_on)
    assert not torch.equal(before, after)


def test_blocks_cannot_be_dropped():
    sizes = {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1}
    widths = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}
    config = AutoConfig.for_model("funnel", vocab_size=50, architectures=[], **sizes, **widths)
    with pytest.raises(Fb3Error, match="blocks of layers"):
        operate(AutoModel.from_config(config), ModelSettings(layer_drop=0.5, pooling=PlainPoolingSettings(kind="mean")))


def test_a_random_layer_is_not_frozen():
    with pytest.raises(Fb3Error, match="meet"):
        operate(
            encoder_of("bert"),
            ModelSettings(reinit_layers=2, freeze_layers=2, pooling=PlainPoolingSettings(kind="mean")),
        )


# Each with what stands outside of its layers or is shared by them; the numbers are the depths of parts of names.
DEPTHS = {
    "bert": {"embeddings.": 0, "encoder.layer.0.": 1, "encoder.layer.2.": 3, "pooler.": 3},
    "deberta": {"embeddings.": 0, "encoder.rel_embeddings.": 0, "encoder.layer.0.": 1},
    "deberta-v2": {
        "embeddings.": 0,
        "encoder.rel_embeddings.": 0,
        "encoder.LayerNorm.": 0,
        "encoder.conv.": 1,
        "encoder.layer.0.": 1,
        "encoder.layer.1.": 2,
    },
    "xlm-roberta-xl": {"embeddings.": 0, "encoder.layer.0.": 1, "encoder.LayerNorm.": 3},
    "electra": {"embeddings_project.": 0, "encoder.layer.0.": 1},
    "mpnet": {"encoder.relative_attention_bias.": 0, "encoder.layer.0.": 1},
    "t5": {
        "shared.": 0,
        "relative_attention_bias.": 0,
        "encoder.block.0.layer.0.SelfAttention.q.": 1,
        "encoder.block.2.": 3,
        "encoder.final_layer_norm.": 3,
    },
    "umt5": {"block.0.layer.0.SelfAttention.relative_attention_bias.": 1, "encoder.block.1.": 2},
    "esm": {"embeddings.": 0, "encoder.emb_layer_norm_after.": 3},
    "albert": {"embeddings.": 0, "encoder.embedding_hidden_mapping_in.": 0, "encoder.albert_layer_groups.": 1},
    "funnel": {"embeddings.": 0, "encoder.blocks.0.": 1, "encoder.blocks.1.": 2, "decoder.": 2},
}


@pytest.mark.parametrize("family", DEPTHS)
def test_every_part_has_the_depth_of_what_it_feeds(family):
    depths, top = depth_of_parameters(sized(family))
    assert top == {"albert": 1, "funnel": 2}.get(family, 3)
    for part, depth in DEPTHS[family].items():
        found = {number for name, number in depths.items() if part in name}
        assert found == {depth}, part


# Parameters left to train above the first two of three layers, by the beginning of its name.
LEFT = {
    "bert": ("encoder.layer.2.",),
    "deberta": ("encoder.layer.2.",),
    "deberta-v2": ("encoder.layer.2.",),
    "electra": ("encoder.layer.2.",),
    "mpnet": ("encoder.layer.2.",),
    "t5": ("encoder.block.2.", "encoder.final_layer_norm."),
    "umt5": ("encoder.block.2.", "encoder.final_layer_norm."),
}


@pytest.mark.parametrize("family", LEFT)
def test_below_what_is_frozen_no_gradient_is_kept(family):
    encoder = sized(family)
    operate(encoder, ModelSettings(freeze_embeddings=True, freeze_layers=2, pooling=PlainPoolingSettings(kind="mean")))
    layers, kept = layer_stack(encoder), []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: kept.append(output[0].requires_grad))
    encoder(input_ids=torch.randint(1, 50, (2, 9))).last_hidden_state.square().sum().backward()
    assert kept == [False, False, True]
    with_gradient = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert with_gradient == {name for name, _ in encoder.named_parameters() if name.startswith(LEFT[family])}


@pytest.mark.parametrize(
    ("family", "embeddings", "layer"),
    [
        (
            "deberta-v2",
            ("embeddings.", "encoder.rel_embeddings.", "encoder.LayerNorm."),
            ("encoder.conv.", "encoder.layer.0."),
        ),
        ("t5", ("shared.", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias."), ("encoder.block.0.",)),
        ("albert", ("embeddings.", "encoder.embedding_hidden_mapping_in."), None),
    ],
)
def test_embeddings_and_layers_are_frozen_apart(family, embeddings, layer):
    def frozen(**settings):
        encoder = sized(family)
        operate(encoder, ModelSettings(**settings, pooling=PlainPoolingSettings(kind="mean")))
        return {name for name, p in encoder.named_parameters() if not p.requires_grad}

    of_embeddings = {name for name, _ in sized(family).named_parameters() if name.startswith(embeddings)}
    assert frozen(freeze_embeddings=True) == of_embeddings
    if layer:
        of_layer = {name for name, _ in sized(family).named_parameters() if name.startswith(layer)} - of_embeddings
        assert frozen(freeze_layers=1) == of_layer
        assert frozen(freeze_layers=1, freeze_embeddings=True) == of_layer | of_embeddings
