import math

import pytest
import torch

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
