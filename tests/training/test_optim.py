import math

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModel,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from fb3.models import build_scorer
from fb3.recipe import load_recipe
from fb3.recipe.groups import OptimizerGroup, ScheduleGroup
from fb3.training.optim import build_optimizer, build_schedule, parameter_groups


@pytest.fixture
def scorer(run, tiny):
    return build_scorer(tiny, run / "encoder", init="config")


def test_every_trainable_parameter_is_in_one_group(scorer):
    scorer.encoder.embeddings.requires_grad_(False)
    groups = parameter_groups(scorer, OptimizerGroup())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in scorer.parameters() if p.requires_grad)


def test_rates_are_the_geometric_series_and_the_head_has_its_own(scorer):
    groups = parameter_groups(scorer, OptimizerGroup(encoder_rate=1e-4, head_rate=1e-3, layer_decay=0.5))
    rate = {group["name"].rsplit(".", 1)[0]: group["lr"] for group in groups}
    assert rate == {"encoder.2": 1e-4, "encoder.1": 5e-5, "encoder.0": 2.5e-5, "head": 1e-3}
    of = {id(p): group["name"] for group in groups for p in group["params"]}
    named = dict(scorer.named_parameters())
    assert of[id(named["encoder.embeddings.word_embeddings.weight"])] == "encoder.0.decay"
    assert of[id(named["encoder.encoder.rel_embeddings.weight"])] == "encoder.0.decay"
    assert of[id(named["encoder.encoder.layer.0.attention.self.query_proj.weight"])] == "encoder.1.decay"
    assert of[id(named["encoder.encoder.layer.1.output.LayerNorm.weight"])] == "encoder.2.plain"


def test_biases_and_normalisation_do_not_decay(scorer):
    for group in parameter_groups(scorer, OptimizerGroup(weight_decay=0.1)):
        plain = group["name"].endswith("plain")
        assert group["weight_decay"] == (0.0 if plain else 0.1)
    of = {id(p): g["weight_decay"] for g in parameter_groups(scorer, OptimizerGroup()) for p in g["params"]}
    for name, parameter in scorer.named_parameters():
        assert (of[id(parameter)] == 0) == (name.endswith("bias") or "LayerNorm" in name), name


def test_the_optimizer_takes_the_recipes_numbers(scorer):
    optimizer = build_optimizer(scorer, load_recipe("tiny").optimizer, scaled=False)
    assert optimizer.defaults["eps"] == 1e-6
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def rates(settings, steps=100):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, settings, steps)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_schedules():
    cosine = rates(ScheduleGroup())
    assert cosine[50] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert cosine[0] == 1
    assert cosine[-1] < 1e-3
    assert rates(ScheduleGroup(kind="linear"))[25] == pytest.approx(0.75)
    assert set(rates(ScheduleGroup(kind="constant"))) == {1.0}
    for settings in (ScheduleGroup(kind="constant", warmup_steps=10), ScheduleGroup(kind="constant", warmup_share=0.1)):
        assert rates(settings)[:11] == pytest.approx([i / 10 for i in range(11)])


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"kind": "cosine", "warmup_steps": 7}, lambda o: get_cosine_schedule_with_warmup(o, 7, 100)),
        ({"kind": "cosine", "cycles": 1.5}, lambda o: get_cosine_schedule_with_warmup(o, 0, 100, num_cycles=1.5)),
        (
            {"kind": "cosine_restarts", "cycles": 3, "warmup_steps": 4},
            lambda o: get_cosine_with_hard_restarts_schedule_with_warmup(o, 4, 100, num_cycles=3),
        ),
        ({"kind": "linear", "warmup_steps": 5}, lambda o: get_linear_schedule_with_warmup(o, 5, 100)),
        (
            {"kind": "polynomial", "power": 3.0, "warmup_steps": 5},
            lambda o: get_polynomial_decay_schedule_with_warmup(o, 5, 100, lr_end=0.0, power=3.0),
        ),
    ],
)
def test_schedules_are_those_of_transformers(settings, theirs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = theirs(optimizer)
    for rate in rates(ScheduleGroup(**settings)):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_a_floor_holds_the_rate_up_after_the_warm_up():
    found = rates(ScheduleGroup(kind="linear", floor=0.3, warmup_steps=10))
    assert found[0] == 0
    assert min(found[10:]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "settings",
    [{"kind": "linear", "cycles": 2}, {"kind": "cosine_restarts"}, {"kind": "cosine", "power": 3.0}],
)
def test_settings_that_would_do_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        ScheduleGroup(**settings)


def test_thirds_and_the_embeddings_own_rate(run):
    config = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=50, **config))
    scorer = torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(16, 2)})
    scorer.encoder = encoder

    def by_depth(**settings):
        groups = parameter_groups(scorer, OptimizerGroup(encoder_rate=1.0, layer_decay=0.5, **settings))
        return {g["name"].split(".")[1]: g["lr"] for g in groups if g["name"].startswith("encoder")}

    thirds = by_depth(decay_by="thirds")
    assert [thirds[str(depth)] for depth in range(7)] == [0.25, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert by_depth(embeddings_rate=0.01)["0"] == 0.01
    assert by_depth(embeddings_rate=0.01)["6"] == 1.0


@pytest.mark.parametrize("kind", ["adamw", "radam", "nadam"])
def test_every_optimizer_lowers_a_loss_and_decays_apart_from_the_gradient(kind):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    target = torch.randn(8, 4)
    inputs = torch.randn(8, 4)
    settings = OptimizerGroup(kind=kind, head_rate=0.05, layer_decay=1.0, weight_decay=0.1)
    optimizer = build_optimizer(layer, settings, scaled=False)
    first = last = None
    for _ in range(60):
        loss = ((layer(inputs) - target) ** 2).mean()
        first, last = first if first is not None else loss.item(), loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert last < 0.6 * first
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(before)
    optimizer = build_optimizer(layer, settings, scaled=False)
    optimizer.step()
    assert torch.allclose(layer.weight, before * (1 - 0.05 * 0.1), atol=1e-4)
    assert (layer.weight.abs() < before.abs()).all(), "weights shrink though the gradient is 0"
