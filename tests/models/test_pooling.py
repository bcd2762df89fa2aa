"""Every pooling against its meaning for a single essay without padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.models.poolings.build import POOLINGS, build_pooling
from fb3.models.poolings.pooling import masked_mean
from fb3.models.poolings.token_poolings import TokenWeightedPooling
from fb3.models.poolings.window_pooling import WindowPooling
from fb3.recipe import Recipe
from fb3.recipe.model import GemPoolingSettings, LayersPoolingSettings, LstmTokensPoolingSettings, PoolingSettings
from fb3.recipe.settings import kinds

WIDTH, DEPTH = 6, 4
GIVEN = {"layers": 3, "power": 2.0, "width": 5}  # settings for the kinds that have them


def firsts(real):
    return torch.stack([states[0] for states in real[-3:]])


def hierarchical(pooling, real):
    top = pooling.nets[0](real[-1].mean(0))
    middle = pooling.nets[1](real[-2].mean(0) + top)
    return (top + middle + pooling.nets[2](real[-3].mean(0) + middle)) / 3


# Each kind in plain words: the pooling and one essay's real tokens, (T_row, D) by layer, to its vector.
MEANINGS = {
    "cls": lambda pooling, real: real[-1][0],
    "mean": lambda pooling, real: real[-1].mean(0),
    "max": lambda pooling, real: real[-1].max(0).values,
    "min": lambda pooling, real: real[-1].min(0).values,
    "mean_max": lambda pooling, real: torch.cat([real[-1].mean(0), real[-1].max(0).values]),
    "attention": lambda pooling, real: torch.softmax(pooling.score(real[-1]).squeeze(-1), 0) @ real[-1],
    "dense": lambda pooling, real: torch.tanh(pooling.dense(real[-1].mean(0))),
    "target_tokens": lambda pooling, real: torch.cat([real[-1][0], real[-1][1]]),
    "gem": lambda pooling, real: (
        (real[-1].double().clamp(min=1e-6) ** pooling.power).mean(0).float() ** (1 / pooling.power)
    ),
    "lstm_tokens": lambda pooling, real: pooling.net(real[-1][None])[0][0].max(0).values,
    "cnn": lambda pooling, real: torch.relu(pooling.net(real[-1].T[None]))[0].T.max(0).values,
    "weighted_layer": lambda pooling, real: sum(
        w * states.mean(0) for w, states in zip(torch.softmax(pooling.weights, 0), real[-3:], strict=True)
    ),
    "concat_layers": lambda pooling, real: torch.cat([states.mean(0) for states in real[-3:]]),
    "lstm_layers": lambda pooling, real: pooling.net(firsts(real)[None])[0][0, -1],
    "gru_layers": lambda pooling, real: pooling.net(firsts(real)[None])[0][0, -1],
    "attention_layers": lambda pooling, real: pooling.out(
        torch.softmax(firsts(real) @ pooling.query, 0) @ firsts(real)
    ),
    "parallel_layers": lambda pooling, real: (
        sum(net(states.mean(0)) for net, states in zip(pooling.nets, real[-3:], strict=True)) / 3
    ),
    "hierarchical_layers": hierarchical,
}
APART = {"pooler", "token_weighted"}  # read more than states; a test of their own below


def build(kind):
    of_kind = kinds(PoolingSettings)[kind]
    settings = of_kind(kind=kind, **{name: value for name, value in GIVEN.items() if name in of_kind.model_fields})
    torch.manual_seed(0)
    pooling = build_pooling(settings, WIDTH, DEPTH, prompt=range(2))
    if kind == "weighted_layer":
        torch.nn.init.normal_(pooling.weights)
    return pooling


def test_every_kind_of_the_recipe_is_in_the_table_and_has_a_meaning():
    assert set(POOLINGS) == {*kinds(PoolingSettings)} == {*MEANINGS, *APART}


def test_lstm_tokens_of_an_earlier_version_is_read_with_its_kernel():
    saved = {"kind": "lstm_tokens", "width": 8, "kernel": 3}
    for model in ({"pooling": saved}, {"stitch": {"backbone": "x", "pooling": saved}}):
        read = Recipe.from_mapping({"model": model}, "recipe.yaml").model
        pooling = read.stitch.pooling if read.stitch else read.pooling
        assert pooling == LstmTokensPoolingSettings(kind="lstm_tokens", width=8)


@pytest.mark.parametrize("kind", MEANINGS)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), shift=st.sampled_from([-50.0, 0.0, 50.0]))
@settings(max_examples=25, deadline=None)
def test_padding_is_never_seen(kind, lengths, shift):
    pooling = build(kind)
    lengths = [max(length, 2) for length in lengths] if kind == "target_tokens" else lengths
    longest = max(lengths) + 2
    generator = torch.Generator().manual_seed(sum(lengths))
    layers = tuple(torch.randn(len(lengths), longest, WIDTH, generator=generator) + shift for _ in range(DEPTH + 1))
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    for states in layers:
        states[mask == 0] = 1e4 * torch.sign(torch.tensor(-shift)) if shift else 1e4
    given_states = layers if pooling.reads == "layers" else layers[-1]
    pooled = pooling(given_states, mask)
    assert pooled.shape == (len(lengths), pooling.width)
    each = [[states[row, mask[row].bool()] for states in layers] for row in range(len(mask))]
    wanted = torch.stack([MEANINGS[kind](pooling, real) for real in each])
    torch.testing.assert_close(pooled, wanted, rtol=1e-4, atol=1e-4)


def test_pooler_output_comes_as_it_is():
    pooled = torch.randn(3, WIDTH)
    assert build("pooler")(pooled, torch.ones(3, 5)) is pooled


def test_more_layers_than_there_are():
    with pytest.raises(Fb3Error, match="has 4 layers"):
        build_pooling(LayersPoolingSettings(kind="concat_layers", layers=5), WIDTH, DEPTH)


@pytest.mark.parametrize("power", [1.0, 3.0, 8.0])
def test_gem_has_finite_gradients_where_units_are_negative(power):
    pooling = build_pooling(GemPoolingSettings(kind="gem", power=power), WIDTH, DEPTH)
    states = (-torch.rand(2, 5, WIDTH)).requires_grad_()
    pooled = pooling(states, torch.ones(2, 5))
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(states.grad).all()
    assert torch.isfinite(pooling.power.grad)


def test_token_weights_are_inverse_document_frequencies():
    pooling = TokenWeightedPooling(WIDTH, vocabulary=5)
    pooling.fit([[1, 1, 2], [1, 3], [1]])
    idf = [math.log(4 / (1 + n)) + 1 for n in (0, 3, 1, 1, 0)]
    torch.testing.assert_close(pooling.rarity, torch.tensor(idf))
    batch = {"input_ids": torch.tensor([[1, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    weights = pooling.token_weights(batch)
    torch.testing.assert_close(weights, torch.tensor([[idf[1], idf[2], 0.0]]))
    states = torch.randn(1, 3, WIDTH)
    mean = (idf[1] * states[0, 0] + idf[2] * states[0, 1]) / (idf[1] + idf[2])
    torch.testing.assert_close(pooling(states, weights)[0], mean)
    torch.testing.assert_close(masked_mean(states, weights)[0], mean)


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_windows_of_one_essay_are_pooled_apart_from_those_of_others(kind):
    inner = build(kind)
    pooled = torch.randn(4, WIDTH)
    batch = {"windows": torch.tensor([[0, 1, 2], [3, 0, 0]]), "window_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    out = WindowPooling(inner)(pooled, batch)
    torch.testing.assert_close(out[:1], inner(pooled[None, :3], torch.ones(1, 3)))
    torch.testing.assert_close(out[1], pooled[3], msg="one window stays as it is")
