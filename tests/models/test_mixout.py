"""Mixout on real encoders from configs."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch.optim.swa_utils import AveragedModel
from transformers import AutoConfig, AutoModel

from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.models.mixout import MixedLinear, mix_out, mixed
from fb3.models.surgery import operate
from fb3.recipe import load_recipe
from fb3.recipe.model import ModelSettings, PlainPoolingSettings
from fb3.runs.checkpoint import weights_of
from fb3.training.run import train
from tests.conftest import TINY

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(1, 15).view(2, 7)


def encoder_of(family):
    torch.manual_seed(0)
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return AutoModel.from_config(AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **SMALL, **without))


def settings(**chosen):
    return ModelSettings(pooling=PlainPoolingSettings(kind="mean"), **chosen)


def cut(encoder, **chosen):
    operate(encoder, settings(**chosen))
    mix_out(encoder, settings(**chosen))
    return encoder


def moved(encoder):
    """As after some training: all weights a little beside their start."""
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return encoder


def states(encoder):
    return encoder(input_ids=IDS).last_hidden_state


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_without_mixout_and_in_eval_nothing_changes_bit_for_bit(family):
    plain = cut(encoder_of(family)).train()
    assert not any(isinstance(module, MixedLinear) for module in plain.modules())
    encoder = cut(encoder_of(family), mixout=0.7).train()
    torch.testing.assert_close(states(encoder), states(plain))  # at the start both weights are the same
    torch.manual_seed(1)
    moved(plain)
    torch.manual_seed(1)
    moved(encoder)
    assert list(encoder.state_dict()) == list(plain.state_dict())
    assert not torch.allclose(states(encoder), states(plain))
    assert torch.equal(states(encoder.eval()), states(plain.eval()))


def test_it_is_the_papers_formula():
    torch.manual_seed(0)
    weight, start, p = torch.randn(50, 40), torch.randn(50, 40), 0.3
    torch.manual_seed(1)
    found = mixed(weight, start, p)
    mask = found == start
    assert mask.float().mean().item() == pytest.approx(p, abs=0.05)
    expected = (torch.where(mask, start, weight) - p * start) / (1 - p)
    torch.testing.assert_close(found, expected)


def test_the_expectation_is_the_weight_and_its_gradient_too():
    torch.manual_seed(0)
    weight, start = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    draws = 20_000
    mean = sum(mixed(weight, start, 0.6) for _ in range(draws)) / draws
    mean.sum().backward()
    spread = (weight - start).abs().detach() * (0.6 / 0.4) ** 0.5 / draws**0.5
    assert ((mean - weight).abs() < 5 * spread + 1e-4).all()
    torch.testing.assert_close(weight.grad, torch.ones(6, 5), atol=0.05, rtol=0)


def test_only_trained_layers_with_a_start_are_mixed():
    encoder = cut(encoder_of("bert"), mixout=0.5, freeze_layers=1, reinit_layers=1)
    kinds = [{type(m) for m in layer.modules() if isinstance(m, torch.nn.Linear)} for layer in encoder.encoder.layer]
    assert kinds == [{torch.nn.Linear}, {MixedLinear}, {torch.nn.Linear}]


@pytest.mark.parametrize(
    "chosen", [{"freeze_layers": 3}, {"reinit_layers": 3}, {"freeze_layers": 2, "reinit_layers": 1}]
)
def test_where_it_would_do_nothing_it_is_refused(chosen):
    with pytest.raises(Fb3Error, match=r"model\.mixout does nothing: BertModel"):
        cut(encoder_of("bert"), mixout=0.5, **chosen)


def test_it_goes_with_averages_checkpointing_and_bf16():
    encoder = moved(cut(encoder_of("bert"), mixout=0.5)).train()
    average = AveragedModel(encoder)
    average.update_parameters(encoder)
    assert torch.equal(states(average.module.eval()), states(copy.deepcopy(encoder).eval()))

    def gradients():
        encoder.zero_grad()
        torch.manual_seed(0)
        states(encoder).square().sum().backward()
        return [p.grad.clone() for p in encoder.encoder.layer.parameters()]

    whole = gradients()
    encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for again, gradient in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(again, gradient)
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(encoder)
    accelerator.backward(prepared(input_ids=IDS).last_hidden_state.sum())
    AcceleratorState._reset_state()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.encoder.layer.parameters())


def test_the_start_follows_to_another_type():
    encoder = cut(encoder_of("bert"), mixout=0.5).double()
    assert {m.start.dtype for m in encoder.modules() if isinstance(m, MixedLinear)} == {torch.float64}
    assert states(encoder.train()).dtype == torch.float64


def test_a_checkpoint_holds_no_start_and_a_loaded_fold_is_plain(competition, tmp_path, run, tiny):
    recipe = load_recipe("tiny", [*TINY, "model.mixout=0.9", "data.sample=24"])
    trained = train(recipe, competition, tmp_path / "run", folds=[0]).path
    with safe_open(trained / "fold0" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights_of(build_scorer(tiny, run / "encoder", init="config")))
    loaded = build_scorer(recipe, trained / "encoder", init="empty")
    assert not any(isinstance(module, MixedLinear) for module in loaded.modules())
