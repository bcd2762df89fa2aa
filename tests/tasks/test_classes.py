"""Tasks on classes: labels, losses, expectations, the head's start, wrappers around them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.models.scorer import ModelOutput
from fb3.recipe import load_recipe
from fb3.recipe.task import BinnedSettings, OrdinalSettings
from fb3.tasks.build import build_task
from fb3.tasks.classes import Binned, LogitSqueezing, Ordinal
from fb3.tasks.losses import Uncertainty
from fb3.tasks.r_drop import RDrop
from tests.conftest import task_of

COLUMNS = ("a", "b", "c")
TRUTHS = arrays(np.float32, (5, 3), elements=st.floats(1, 5, width=32)).map(torch.from_numpy)


def binned(**more):
    return task_of(Binned, BinnedSettings(kind="binned", **more), *COLUMNS)


def ordinal(**more):
    return task_of(Ordinal, OrdinalSettings(kind="ordinal", **more), *COLUMNS)


def logits(width, rows=5):
    return arrays(np.float32, (rows, 3 * width), elements=st.floats(-30, 30, width=32)).map(torch.from_numpy)


def answer(outputs):
    return lambda batch: ModelOutput(outputs, None)


@given(truth=TRUTHS, step=st.sampled_from([0.25, 0.5, 1.0, 4.0]))
@settings(deadline=None, max_examples=50)
def test_labels_hold_the_truth_in_both_forms(truth, step):
    soft = binned(step=step).labels(truth)
    assert soft.shape == (5, 3, round(4 / step) + 1)
    assert (soft >= 0).all()
    assert ((soft > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(soft.sum(-1), torch.ones(5, 3))
    values = 1 + step * torch.arange(soft.shape[-1])
    torch.testing.assert_close((soft * values).sum(-1), truth)
    above = ordinal(step=step).labels(truth)
    torch.testing.assert_close(above, soft.flip(-1).cumsum(-1).flip(-1)[..., 1:], atol=1e-5, rtol=0)  # P(truth > class)
    torch.testing.assert_close(1 + step * above.sum(-1), truth)


@given(outputs=logits(9))
@settings(deadline=None, max_examples=30)
def test_a_binned_prediction_is_the_expectation_within_the_range(outputs):
    predicted = binned().predict(answer(outputs), {})
    values = torch.arange(1.0, 5.1, 0.5)
    torch.testing.assert_close(predicted, outputs.view(5, 3, 9).softmax(-1) @ values)
    assert predicted.min() >= 1 - 1e-5
    assert predicted.max() <= 5 + 1e-5


@given(outputs=logits(8))
@settings(deadline=None, max_examples=30)
def test_an_ordinal_prediction_lies_in_the_range_and_rises_with_its_logits(outputs):
    task = ordinal()
    predicted = task.predict(answer(outputs), {})
    assert predicted.shape == (5, 3)
    assert predicted.min() >= 1
    assert predicted.max() <= 5
    assert (task.predict(answer(outputs + 1), {}) >= predicted).all()
    torch.testing.assert_close(task.predict(answer(torch.zeros(1, 24)), {}), torch.full((1, 3), 3.0))


def test_the_binned_loss_is_cross_entropy_smoothed_and_focal():
    outputs, truth = torch.randn(5, 27), torch.tensor([[1.0, 5.0, 2.25]]).repeat(5, 1)
    batch = {"targets": truth}
    flat = outputs.view(15, 9)
    labels = torch.zeros(15, 9)
    labels[0::3, 0] = labels[1::3, 8] = 1.0
    labels[2::3, 2:4] = 0.5
    loss = F.cross_entropy(flat, labels)
    torch.testing.assert_close(binned().loss(answer(outputs), batch).loss, loss)
    each = torch.stack([F.cross_entropy(flat[k::3], labels[k::3]) for k in range(3)])
    torch.testing.assert_close(binned().column_losses(outputs.view(5, 3, 9), binned().labels(truth)), each)
    loss = F.cross_entropy(flat, labels, label_smoothing=0.1)
    torch.testing.assert_close(binned(smoothing=0.1).loss(answer(outputs), batch).loss, loss)
    p = flat.softmax(-1)
    loss = -(labels * (1 - p) ** 2 * p.log()).sum(-1).mean()
    torch.testing.assert_close(binned(focal=2.0).loss(answer(outputs), batch).loss, loss)


def test_the_ordinal_loss_is_binary_cross_entropy_at_the_bounds():
    outputs, truth = torch.randn(5, 24), torch.tensor([[1.0, 5.0, 2.25]]).repeat(5, 1)
    labels = torch.zeros(5, 3, 8)
    labels[:, 1] = labels[:, 2, :2] = 1.0
    labels[:, 2, 2] = 0.5
    loss = F.binary_cross_entropy_with_logits(outputs.view(5, 3, 8), labels)
    torch.testing.assert_close(ordinal().loss(answer(outputs), {"targets": truth}).loss, loss)
    each = [F.binary_cross_entropy_with_logits(outputs[:, 8 * k : 8 * k + 8], labels[:, k]) for k in range(3)]
    torch.testing.assert_close(ordinal().column_losses(outputs.view(5, 3, 8), labels), torch.stack(each))


@pytest.mark.parametrize("task", [binned(), binned(focal=0.5), binned(smoothing=0.1), ordinal()])
def test_gradients_are_finite_and_descent_finds_the_truth(task):
    truth = torch.tensor([[1.0, 2.25, 5.0], [4.5, 3.0, 1.0]])
    width = task.first_bias(truth).numel()
    for size in (0.0, 2e4):  # probabilities of 0 and 1 too
        outputs = torch.linspace(-size, size, 2 * width).view(2, width).requires_grad_()
        task.loss(answer(outputs), {"targets": truth}).loss.backward()
        assert torch.isfinite(outputs.grad).all()
    outputs = torch.zeros(2, width, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        task.loss(answer(outputs), {"targets": truth}).loss.backward()
        optimizer.step()
    off = (task.predict(answer(outputs.detach()), {}) - truth).abs().max()
    assert off < (0.3 if getattr(task, "_smoothing", 0) else 0.1)


@pytest.mark.parametrize("task", [binned(), ordinal()])
@given(truth=TRUTHS)
@settings(deadline=None, max_examples=20)
def test_the_first_bias_is_finite_and_predicts_the_means_of_many(task, truth):
    truth = truth.repeat(400, 1)
    bias = task.first_bias(truth)
    assert torch.isfinite(bias).all()
    torch.testing.assert_close(task.predict(answer(bias[None]), {})[0], truth.mean(0), atol=0.02, rtol=0)


@given(one=logits(9), two=logits(9))
@settings(deadline=None, max_examples=30)
def test_the_distance_of_softmaxes_is_their_symmetric_kl(one, two):
    task = binned()
    a, b = (outputs.double().view(5, 3, 9).log_softmax(-1) for outputs in (one, two))
    both = F.kl_div(a, b, reduction="none", log_target=True) + F.kl_div(b, a, reduction="none", log_target=True)
    distance = task.distance(one, two)
    assert distance.item() == pytest.approx(both.sum(-1).mean().item() / 2, rel=1e-3, abs=1e-5)
    assert distance >= 0
    assert task.distance(one, one) == 0


@given(one=logits(8), two=logits(8))
@settings(deadline=None, max_examples=30)
def test_the_distance_of_sigmoids_is_their_symmetric_kl(one, two):
    task = ordinal()

    def kl(a, b):
        p = a.sigmoid()
        return p * (F.logsigmoid(a) - F.logsigmoid(b)) + (1 - p) * (F.logsigmoid(-a) - F.logsigmoid(-b))

    both = kl(one.double(), two.double()) + kl(two.double(), one.double())
    distance = task.distance(one, two)
    assert distance.item() == pytest.approx(both.mean().item() / 2, rel=1e-3, abs=1e-5)
    assert distance >= 0
    assert task.distance(one, one) == 0


@pytest.mark.parametrize("task", [binned(), ordinal()])
def test_wrappers_add_squared_logits_and_the_tasks_distance(task):
    truth = torch.tensor([[1.0, 2.25, 5.0]])
    width = task.first_bias(truth).numel()
    one, two = torch.randn(1, width), torch.randn(1, width)
    batch = {"targets": truth}
    plain = [task.loss(answer(outputs), batch).loss for outputs in (one, two)]
    squeezed = LogitSqueezing(task, 0.5)
    out = squeezed.loss(answer(one), batch)
    torch.testing.assert_close(out.loss, plain[0] + 0.5 * one.pow(2).mean())
    turns = iter([one, two])
    both = RDrop(squeezed, 2.0)
    out = both.loss(lambda inputs: ModelOutput(next(turns), None), batch)
    wanted = sum(plain) / 2 + 0.25 * (one.pow(2).mean() + two.pow(2).mean()) + 2.0 * task.distance(one, two)
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(both.predict(answer(one), {}), task.predict(answer(one), {}))
    torch.testing.assert_close(both.first_bias(truth), task.first_bias(truth))
    assert both.target.columns == COLUMNS


@pytest.mark.parametrize("kind", ["binned", "ordinal"])
def test_r_drop_of_classes_is_nothing_without_dropout_and_something_with_it(kind, run, tiny):
    recipe = load_recipe("tiny", [f"task={{kind: {kind}, r_drop: {{alpha: 1.0}}}}", "model.dropout=0.1"])
    torch.manual_seed(0)
    scorer = build_scorer(recipe, run / "encoder", init="config").train()
    ids = torch.randint(5, 100, (3, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": torch.rand(3, 6) * 4 + 1}

    def term(dropout):
        for module in scorer.modules():
            if hasattr(module, "p") or hasattr(module, "drop_prob"):
                module.p = module.drop_prob = dropout
        return build_task(recipe).loss(scorer, batch).logs["r_drop"].item()

    assert term(0.0) == 0.0
    assert term(0.3) > 1e-9


@pytest.mark.parametrize("task", [binned(weighting="uncertainty"), ordinal(weighting="uncertainty")])
def test_classes_learn_one_weight_a_column(task):
    (s,) = task.parameters()
    assert s.shape == (3,)
    truth = torch.tensor([[1.0, 2.25, 5.0]])
    outputs = torch.randn(1, task.first_bias(truth).numel())
    each = task.column_losses(outputs.view(1, 3, -1), task.labels(truth))
    with torch.no_grad():
        s.copy_(torch.tensor([0.5, 0.0, -1.0]))
    torch.testing.assert_close(task.loss(answer(outputs), {"targets": truth}).loss, ((-s).exp() * each + s).sum())
    assert isinstance(task._together, Uncertainty)


@pytest.mark.parametrize(
    ("overrides", "width"),
    [([], 6), (["task={kind: binned}"], 54), (["task={kind: ordinal, step: 1.0}"], 24)],
)
def test_the_head_is_as_wide_as_the_task_wants(overrides, width, run):
    scorer = build_scorer(load_recipe("tiny", overrides), run / "encoder", init="config")
    assert scorer.head.linear.out_features == width


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task={kind: binned, step: 0.3}", "does not divide the range from 1.0 to 5.0"),
        ("task={kind: ordinal, step: 8}", "does not divide"),
        ("task={kind: ordinal, minimum: -1.0e+308, maximum: 1.0e+308}", "does not divide"),
        ("task={kind: ordinal, smoothing: 0.1}", "task.smoothing: belongs to kinds binned, classification, multilabel"),
        ("task={kind: binned, loss: mse}", "task.loss: belongs to kind regression"),
        ("task={kind: bins}", "'regression', 'binned', 'ordinal'"),
        ("task={kind: binned, minimum: 5, maximum: 1}", "below"),
        ("task.lss=mse", "did you mean 'task.loss'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(override, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", [override])


def test_a_task_without_a_kind_is_regression_and_survives_yaml(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("task: {loss: mse}\n")
    assert load_recipe(path).task.kind == "regression"
    recipe = load_recipe("tiny", ["task.kind=binned", "task.step=0.25", "task.squeeze=0.01"])
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert (recipe.task.classes(), recipe.task.kind) == (17, "binned")
    task = build_task(recipe)
    assert isinstance(task, LogitSqueezing)
    assert isinstance(task.task, Binned)
