"""Every pooling against a loop over essays that never sees padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.models.poolings.build import build_pooling
from fb3.models.poolings.pooling import masked_mean
from fb3.models.poolings.token_poolings import TokenWeightedPooling
from fb3.models.poolings.window_pooling import WindowPooling
from fb3.recipe.model import (
    FittedPoolingSettings,
    GemPoolingSettings,
    LayersPoolingSettings,
    PlainPoolingSettings,
    TokensPoolingSettings,
)

WIDTH, DEPTH = 6, 4


def loop_over_essays(kind, pooling, layers, mask):
    """What the pooling means, one essay at a time, on its real tokens only."""
    out = []
    for row in range(len(mask)):
        real = [states[row, mask[row].bool()] for states in layers]  # (T_row, D) each
        last = real[-1]
        if kind == "cls":
            out.append(last[0])
        elif kind == "mean":
            out.append(last.mean(0))
        elif kind == "max":
            out.append(last.max(0).values)
        elif kind == "min":
            out.append(last.min(0).values)
        elif kind == "attention":
            weight = torch.softmax(pooling.score(last).squeeze(-1), 0)
            out.append((weight[:, None] * last).sum(0))
        elif kind == "weighted_layer":
            weight = torch.softmax(pooling.weights, 0)
            out.append(sum(w * states.mean(0) for w, states in zip(weight, real[-3:], strict=True)))
        elif kind == "concat_layers":
            out.append(torch.cat([states.mean(0) for states in real[-3:]]))
        elif kind == "mean_max":
            out.append(torch.cat([last.mean(0), last.max(0).values]))
        elif kind == "dense":
            out.append(torch.tanh(pooling.dense(last.mean(0))))
        elif kind == "gem":
            out.append((last.double().clamp(min=1e-6) ** pooling.power).mean(0).float() ** (1 / pooling.power))
        elif kind in {"lstm_layers", "gru_layers"}:
            firsts = torch.stack([states[0] for states in real[-3:]])
            out.append(pooling.net(firsts[None])[0][0, -1])
        elif kind == "attention_layers":
            firsts = torch.stack([states[0] for states in real[-3:]])
            out.append(pooling.out(torch.softmax(firsts @ pooling.query, 0) @ firsts))
        elif kind == "parallel_layers":
            nets = zip(pooling.nets, real[-3:], strict=True)
            out.append(sum(net(states.mean(0)) for net, states in nets) / 3)
        elif kind == "hierarchical_layers":
            top = pooling.nets[0](real[-1].mean(0))
            middle = pooling.nets[1](real[-2].mean(0) + top)
            out.append((top + middle + pooling.nets[2](real[-3].mean(0) + middle)) / 3)
        elif kind == "target_tokens":
            out.append(torch.cat([last[0], last[1]]))
        elif kind == "lstm_tokens":
            out.append(pooling.net(last[None])[0][0].max(0).values)
        elif kind == "cnn":
            out.append(torch.relu(pooling.net(last.T[None]))[0].T.max(0).values)
    return torch.stack(out)


def layered(kind):
    return LayersPoolingSettings(kind=kind, layers=3)


SETTINGS = {
    **dict.fromkeys(
        ("cls", "mean", "max", "min", "mean_max", "attention", "dense"), lambda k: PlainPoolingSettings(kind=k)
    ),
    **dict.fromkeys(("weighted_layer", "concat_layers", "lstm_layers", "gru_layers", "attention_layers"), layered),
    **dict.fromkeys(("parallel_layers", "hierarchical_layers"), layered),
    "target_tokens": lambda kind: FittedPoolingSettings(kind=kind),
    "gem": lambda kind: GemPoolingSettings(kind=kind, power=2.0),
    **dict.fromkeys(("lstm_tokens", "cnn"), lambda kind: TokensPoolingSettings(kind=kind, width=5)),
    "pooler": lambda kind: PlainPoolingSettings(kind=kind),
}


def build(kind):
    settings = SETTINGS[kind](kind)
    torch.manual_seed(0)
    pooling = build_pooling(settings, WIDTH, DEPTH, prompt=range(2))
    if kind == "weighted_layer":
        torch.nn.init.normal_(pooling.weights)
    return pooling


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if kind != "pooler"])
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
    torch.testing.assert_close(pooled, loop_over_essays(kind, pooling, layers, mask), rtol=1e-4, atol=1e-4)


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
