"""Re-initialised layers and stochastic depth on real encoders from configs."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from fb3.errors import Fb3Error
from fb3.models.encoder import layer_stack
from fb3.models.surgery import operate, reinitialise
from fb3.recipe.groups import ModelGroup, PlainPooling

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
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
    operate(encoder, ModelGroup(layer_drop=0.999999, pooling=PlainPooling(kind="mean")))
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


@pytest.mark.parametrize("family", ["t5", "modernbert"])
def test_every_weight_starts_as_the_encoder_itself_starts_it(family):
    t5 = {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_kv": 32, "d_ff": 128}
    small = t5 if family == "t5" else {**SMALL, "hidden_size": 64, "num_hidden_layers": 2}
    config = AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **small)
    auto = AutoModelForTextEncoding if family == "t5" else AutoModel
    torch.manual_seed(0)
    encoder = auto.from_config(config)
    own = {name: p.std().item() for name, p in layer_stack(encoder)[-1].named_parameters() if p.ndim > 1}
    reinitialise(encoder, 1)
    for name, p in layer_stack(encoder)[-1].named_parameters():
        if p.ndim > 1:
            assert p.std().item() == pytest.approx(own[name], rel=0.15), name


def test_blocks_cannot_be_dropped():
    sizes = {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1}
    widths = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}
    config = AutoConfig.for_model("funnel", vocab_size=50, architectures=[], **sizes, **widths)
    with pytest.raises(Fb3Error, match="blocks of layers"):
        operate(AutoModel.from_config(config), ModelGroup(layer_drop=0.5, pooling=PlainPooling(kind="mean")))


def test_a_random_layer_is_not_frozen():
    with pytest.raises(Fb3Error, match="meet"):
        operate(encoder_of("bert"), ModelGroup(reinit_layers=2, freeze_layers=2, pooling=PlainPooling(kind="mean")))
