import math
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.recipe import load_recipe
from fb3.recipe.settings import kinds
from fb3.recipe.training import AdamWSettings, CosineScheduleSettings, OptimizerSettings, ScheduleSettings
from fb3.training.optimizer import OPTIMIZERS, build_optimizer
from fb3.training.parameter_groups import parameter_groups
from fb3.training.schedule import SCHEDULES, build_schedule
from tests.models.sized import sized


@pytest.fixture
def scorer(run, tiny):
    return build_scorer(tiny, run / "encoder", init="config")


def test_every_kind_has_a_line_in_its_table():
    assert OPTIMIZERS.keys() == kinds(OptimizerSettings).keys()
    assert SCHEDULES.keys() == kinds(ScheduleSettings).keys()


def test_every_trainable_parameter_is_in_one_group(scorer):
    scorer.encoder.embeddings.requires_grad_(False)
    groups = parameter_groups(scorer, AdamWSettings())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in scorer.parameters() if p.requires_grad)


def test_rates_are_the_geometric_series_and_the_head_has_its_own(scorer):
    groups = parameter_groups(scorer, AdamWSettings(encoder_rate=1e-4, head_rate=1e-3, layer_decay=0.5))
    rate = {group["name"].rsplit(".", 1)[0]: group["lr"] for group in groups}
    assert rate == {"encoder.2": 1e-4, "encoder.1": 5e-5, "encoder.0": 2.5e-5, "head": 1e-3}
    of = {id(p): group["name"] for group in groups for p in group["params"]}
    named = dict(scorer.named_parameters())
    assert of[id(named["encoder.embeddings.word_embeddings.weight"])] == "encoder.0.decay"
    assert of[id(named["encoder.encoder.rel_embeddings.weight"])] == "encoder.0.decay"
    assert of[id(named["encoder.encoder.LayerNorm.weight"])] == "encoder.0.plain", "it is the table's"
    assert of[id(named["encoder.encoder.layer.0.attention.self.query_proj.weight"])] == "encoder.1.decay"
    assert of[id(named["encoder.encoder.layer.1.output.LayerNorm.weight"])] == "encoder.2.plain"


def test_biases_and_normalisation_do_not_decay(scorer):
    for group in parameter_groups(scorer, AdamWSettings(weight_decay=0.1)):
        plain = group["name"].endswith("plain")
        assert group["weight_decay"] == (0.0 if plain else 0.1)
    of = {id(p): g["weight_decay"] for g in parameter_groups(scorer, AdamWSettings()) for p in g["params"]}
    for name, parameter in scorer.named_parameters():
        assert (of[id(parameter)] == 0) == (name.endswith("bias") or "LayerNorm" in name), name


@pytest.mark.parametrize(
    ("family", "biases", "decayed"),
    [
        ("deberta", ("q_bias", "v_bias"), ("rel_embeddings.weight", "in_proj.weight")),
        ("xlnet", ("r_w_bias", "r_r_bias", "r_s_bias"), ("rel_attn.r", "seg_embed")),
        ("funnel", ("r_w_bias", "r_r_bias", "r_s_bias"), ("r_kernel", "seg_embed")),
        ("t5", (), ("relative_attention_bias.weight", "SelfAttention.q.weight")),
    ],
)
def test_what_is_a_bias_is_told_by_its_own_name(family, biases, decayed):
    """T5's table of relative positions is none, whatever its module is called."""
    scorer = FunctionalEncoder(16, 2)
    scorer.encoder = sized(family)
    scorer.towers = lambda: {"": scorer}
    groups = parameter_groups(scorer, AdamWSettings(weight_decay=0.1, layer_decay=1.0))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(scorer.named_parameters())
    for ends, wanted in ((biases, 0.0), (decayed, 0.1)):
        for end in ends:
            found = {decay[id(p)] for name, p in named.items() if name.endswith(end)}
            assert found == {wanted}, end


def test_the_optimizer_takes_the_recipes_numbers(scorer):
    optimizer = build_optimizer(scorer, load_recipe("tiny").optimizer, scaled=False)
    assert optimizer.defaults["eps"] == 1e-6
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def schedule_of(kind, **more):
    return kinds(ScheduleSettings)[kind](kind=kind, **more)


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
    cosine = rates(CosineScheduleSettings())
    assert cosine[50] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert cosine[0] == 1
    assert cosine[-1] < 1e-3
    assert rates(schedule_of("linear"))[25] == pytest.approx(0.75)
    assert set(rates(schedule_of("constant"))) == {1.0}
    for settings in (
        schedule_of("constant", warmup_steps=10),
        schedule_of("constant", warmup_share=0.1),
    ):
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
    for rate in rates(schedule_of(**settings)):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_a_floor_holds_the_rate_up_after_the_warm_up():
    found = rates(schedule_of("linear", floor=0.3, warmup_steps=10))
    assert found[0] == 0
    assert min(found[10:]) == pytest.approx(0.3)


def test_thirds_and_the_embeddings_own_rate(run):
    config = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=50, **config))
    scorer = FunctionalEncoder(16, 2)
    scorer.encoder = encoder
    scorer.towers = lambda: {"": scorer}

    def by_depth(**settings):
        groups = parameter_groups(scorer, AdamWSettings(encoder_rate=1.0, layer_decay=0.5, **settings))
        return {g["name"].split(".")[1]: g["lr"] for g in groups if g["name"].startswith("encoder")}

    thirds = by_depth(decay_by="thirds")
    assert [thirds[str(depth)] for depth in range(7)] == [0.25, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert by_depth(embeddings_rate=0.01)["0"] == 0.01
    assert by_depth(embeddings_rate=0.01)["6"] == 1.0


def test_thirds_of_two_layers_are_refused(scorer):
    with pytest.raises(Fb3Error, match="the rates that layer gives it"):
        parameter_groups(scorer, AdamWSettings(decay_by="thirds"))


class FunctionalEncoder(torch.nn.Linear):
    """A scorer of nothing but a head."""

    def towers(self):
        return {}


BORROWED = ["ranger", "lamb", "madgrad"]
KINDS = [kind for kind in kinds(OptimizerSettings) if kind != "adamw_8bit"]  # which wants a GPU


def optimizer_of(kind, **more):
    return kinds(OptimizerSettings)[kind](kind=kind, **more)


def of_kind(kind, **more):
    if kind in BORROWED:
        pytest.importorskip("pytorch_optimizer")
    return optimizer_of(kind, head_rate=0.05, layer_decay=1.0, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_lowers_a_loss_and_decays_apart_from_the_gradient(kind):
    torch.manual_seed(0)
    layer = FunctionalEncoder(4, 4)
    inputs = torch.randn(8, 4)
    target = torch.nn.Linear(4, 4)(inputs).detach()
    settings = of_kind(kind, weight_decay=0.1)
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
    for _ in range(49):
        optimizer.step()
    kept = layer.weight / before
    assert (kept > (1 - 0.05 * 0.1) ** 50 - 1e-3).all()
    assert (kept < 0.9).all(), "and go on to do so; ranger's lookahead halves it"


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_goes_downhill_from_its_first_step_on(kind):
    """The library's ranger, as it stands there, climbs in its first five."""
    layer = FunctionalEncoder(4, 4)
    optimizer = build_optimizer(layer, of_kind(kind, weight_decay=0.0), scaled=False)
    slope = torch.arange(16.0).view(4, 4) - 7.0
    for number in range(5):
        before = layer.weight.detach().clone()
        layer.weight.grad = slope.clone()
        optimizer.step()
        assert ((layer.weight.detach() - before) * slope).sum() < 0, number


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_takes_the_layers_rates_a_schedule_and_bf16(kind, run, tiny):
    """A parameter without a gradient is passed over, too: gradual_unfreeze takes gradients away."""
    if kind in BORROWED:
        pytest.importorskip("pytorch_optimizer")
    torch.manual_seed(0)
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    scorer = build_scorer(tiny, run / "encoder", init="config")
    settings = optimizer_of(kind, encoder_rate=1e-3, head_rate=1e-2, layer_decay=0.1)
    optimizer = build_optimizer(scorer, settings, scaled=False)
    schedule = build_schedule(optimizer, schedule_of("linear", warmup_steps=2), 10)
    start = {name: p.detach().clone() for name, p in scorer.named_parameters()}
    model, optimizer = accelerator.prepare(scorer, optimizer)
    ids = torch.randint(5, 100, (3, 12))
    for _ in range(5):
        accelerator.backward(model({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).scores.square().mean())
        for p in scorer.encoder.embeddings.parameters():
            p.grad = None
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    AcceleratorState._reset_state()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["head.decay"] == pytest.approx(1e-2 * 5 / 8)
    assert rates["encoder.1.decay"] == pytest.approx(1e-4 * 5 / 8)
    moved = {name: (p.detach() - start[name]).norm() / start[name].norm() for name, p in scorer.named_parameters()}
    assert moved["encoder.embeddings.word_embeddings.weight"] == 0
    for name in ("head.linear.weight", "encoder.encoder.layer.0.attention.self.query_proj.weight"):
        assert 0 < moved[name] < 0.5, name
    by_layer = [moved[f"encoder.encoder.layer.{n}.intermediate.dense.weight"] for n in (0, 1)]
    assert by_layer[0] < by_layer[1], "the lower layer has a tenth of the rate"


def test_lambs_step_is_a_share_of_the_weights_norm():
    pytest.importorskip("pytorch_optimizer")
    layer = FunctionalEncoder(4, 4)
    optimizer = build_optimizer(layer, of_kind("lamb", weight_decay=0.0), scaled=False)
    for _ in range(3):
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.randn(4, 4)
        optimizer.step()
        assert (layer.weight - before).norm().item() == pytest.approx(0.05 * before.norm().item(), rel=1e-3)


@pytest.mark.parametrize("scaled", [False, True])
@given(
    betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.9999)),
    decay=st.floats(0, 0.5),
    gradients=st.lists(st.floats(-3, 3).filter(lambda g: abs(g) > 1e-3), min_size=1, max_size=6),
)
@trials(max_examples=30, deadline=None)
def test_without_bias_correction_it_is_bert_adam(scaled, betas, decay, gradients):
    layer = FunctionalEncoder(1, 1, bias=False).double()
    chosen = AdamWSettings(head_rate=0.01, layer_decay=1.0, weight_decay=decay, betas=betas, bias_correction=False)
    optimizer = build_optimizer(layer, chosen, scaled=scaled)
    weight, m, v = layer.weight.item(), 0.0, 0.0
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        weight -= 0.01 * (m / (math.sqrt(v) + 1e-6) + decay * weight)
        assert layer.weight.item() == pytest.approx(weight, rel=1e-10, abs=1e-12)


def test_a_missing_library_or_gpu_is_named(monkeypatch):
    layer = FunctionalEncoder(2, 2)
    with pytest.raises(Fb3Error, match="adamw_8bit wants a GPU"):
        build_optimizer(layer, of_kind("adamw_8bit"), scaled=False)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    for kind in BORROWED:
        with pytest.raises(Fb3Error, match=f"kind={kind}.*pip install pytorch_optimizer"):
            build_optimizer(layer, optimizer_of(kind, layer_decay=1.0), scaled=False)
