"""Tasks on labels: losses against torch's and the papers' formulas, weights, sampling, wrappers, and rules."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fb3.data.batches import Sampling, rarest_labels, training_batches
from fb3.errors import Fb3Error
from fb3.models.scorer import ModelOutput
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings
from fb3.recipe.task import ClassificationSettings, MultilabelSettings
from fb3.targets.target import Classes, Probabilities
from fb3.tasks.build import build_task
from fb3.tasks.classes import LogitSqueezing
from fb3.tasks.labels import Classification, Multilabel
from fb3.tasks.r_drop import RDrop
from fb3.training.training_data import chances

NAMES = ("a", "b", "c")
LABELS = torch.eye(3)[[0, 0, 0, 0, 1, 1, 2]]  # (7, 3): counts 4, 2, 1
SEVERAL = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0.25]])
SINGLE = ["task.kind=classification", "data.target_columns=[label]", "metric=log_loss"]


def classification(**more):
    settings = ClassificationSettings(kind="classification", classes=NAMES, **more)
    return Classification(settings, Classes(DataSettings(target_columns=("label",)), settings, "log_loss"))


def multilabel(**more):
    settings = MultilabelSettings(kind="multilabel", **more)
    return Multilabel(settings, Probabilities(DataSettings(target_columns=NAMES), settings, "log_loss"))


def answer(outputs):
    return lambda batch: ModelOutput(outputs, None)


def loss(task, outputs, targets, **batch):
    return task.loss(answer(outputs), {"targets": targets, **batch}).loss


def test_the_losses_are_torchs_and_the_papers():
    outputs, soft = torch.randn(7, 3), torch.tensor([[0.6, 0.3, 0.1]]).repeat(7, 1)
    p = outputs.softmax(-1)
    for truth in (LABELS, soft):
        torch.testing.assert_close(loss(classification(), outputs, truth), F.cross_entropy(outputs, truth))
        smoothed = F.cross_entropy(outputs, truth, label_smoothing=0.1)
        torch.testing.assert_close(loss(classification(smoothing=0.1), outputs, truth), smoothed)
        focal = -(truth * (1 - p) ** 2 * p.log()).sum(-1).mean()
        torch.testing.assert_close(loss(classification(focal=2.0), outputs, truth), focal)
        poly = F.cross_entropy(outputs, truth) + 1.5 * (1 - (truth * p).sum(-1)).mean()
        torch.testing.assert_close(loss(classification(poly=1.5), outputs, truth), poly)
        poly_focal = focal + 1.5 * (truth * (1 - p) ** 3).sum(-1).mean()
        torch.testing.assert_close(loss(classification(poly=1.5, focal=2.0), outputs, truth), poly_focal)
    outputs = torch.randn(5, 3)
    q = outputs.sigmoid()
    plain = F.binary_cross_entropy_with_logits(outputs, SEVERAL)
    torch.testing.assert_close(loss(multilabel(), outputs, SEVERAL), plain)
    smoothed = F.binary_cross_entropy_with_logits(outputs, 0.9 * SEVERAL + 0.05)
    torch.testing.assert_close(loss(multilabel(smoothing=0.1), outputs, SEVERAL), smoothed)
    focal = -(SEVERAL * (1 - q) ** 2 * q.log() + (1 - SEVERAL) * q**2 * (1 - q).log()).mean()
    torch.testing.assert_close(loss(multilabel(focal=2.0), outputs, SEVERAL), focal)
    wrong = SEVERAL * (1 - q) + (1 - SEVERAL) * q
    torch.testing.assert_close(loss(multilabel(poly=-1.0), outputs, SEVERAL), plain - wrong.mean())


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"kind": "balanced"}, [7 / 12, 7 / 6, 7 / 3]),  # scikit-learn's n / (K n_c)
        ({"kind": "balanced", "most": 2.0}, [7 / 10, 7 / 5, 7 / 5]),
        ({"kind": "power", "power": 0.5}, [0.5, 0.5**0.5, 1.0]),
        ({"kind": "effective", "beta": 0.9}, [0.1 / (1 - 0.9**4), 0.1 / (1 - 0.9**2), 1.0]),
    ],
)
def test_class_weights_have_a_mean_of_one_over_the_training_rows(settings, wanted):
    task = classification(class_weights=settings)
    task.fit(LABELS)
    each = np.array([loss(task, torch.zeros(1, 3), torch.eye(3)[[k]]).item() for k in range(3)]) / np.log(3)
    wanted = np.array(wanted) * 7 / (np.array([4, 2, 1]) @ wanted)
    np.testing.assert_allclose(each, wanted, rtol=1e-5)
    assert loss(task, torch.zeros(7, 3), LABELS).item() == pytest.approx(np.log(3), rel=1e-5)
    score = task.score(LABELS.numpy(), np.full((7, 3), 1 / 3, np.float32))
    assert score.loss == pytest.approx(np.log(3), rel=1e-6), "the validation loss is unweighted"
    task.fit(LABELS * torch.tensor([1.0, 1.0, 0.0]))  # no row of the last class: its weight is finite
    assert torch.isfinite(loss(task, torch.zeros(7, 3), LABELS))


def test_each_of_several_labels_weighs_its_two_answers():
    task = multilabel(class_weights={"kind": "balanced"})
    task.fit(SEVERAL.round())
    true, false = (loss(task, torch.zeros(1, 3), torch.full((1, 3), value)) * 3 for value in (1.0, 0.0))
    counts = torch.tensor([3.0, 1.0, 1.0])
    torch.testing.assert_close(true / np.log(2), (2.5 / counts).sum())
    torch.testing.assert_close(false / np.log(2), (2.5 / (5 - counts)).sum())


@pytest.mark.parametrize("kind", [classification, multilabel])
@pytest.mark.parametrize("cuts", [(2, 5), (1, 2), (6,)])
def test_gradients_of_a_weighted_batch_are_those_of_its_parts(kind, cuts):
    """Else accumulation and micro-batches would shift the weights: a sum divided by the part's own weights does."""
    task = kind(class_weights={"kind": "balanced"}, focal=1.0, smoothing=0.1, poly=1.0)
    task.fit(LABELS)
    whole, parts = (torch.linspace(-2, 2, 21).view(7, 3).requires_grad_() for _ in range(2))
    weight = torch.tensor([0.0, 3.0, 1.0, 0.5, 0.5, 1.0, 1.0])
    loss(task, whole, LABELS, weight=weight).backward()
    for start, end in itertools.pairwise([0, *cuts, 7]):
        part = loss(task, parts[start:end], LABELS[start:end], weight=weight[start:end])
        (part * (end - start) / 7).backward()
    torch.testing.assert_close(parts.grad, whole.grad)
    assert (whole.grad[0] == 0).all(), "a row of weight 0 teaches nothing"


@pytest.mark.parametrize("kind", [classification, multilabel])
@pytest.mark.parametrize("settings", [{}, {"focal": 0.5, "poly": -1.0}, {"smoothing": 0.1, "focal": 2.0, "poly": 2.0}])
def test_gradients_are_finite_and_descent_finds_the_truth(kind, settings):
    task, truth = kind(**settings), torch.eye(3)
    for size in (0.0, 2e4):  # probabilities of 0 and 1 too
        outputs = torch.linspace(-size, size, 9).view(3, 3).requires_grad_()
        loss(task, outputs, truth).backward()
        assert torch.isfinite(outputs.grad).all()
    outputs = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(task, outputs, truth).backward()
        optimizer.step()
    predicted = task.predict(answer(outputs.detach()), {})
    assert (predicted.argmax(-1) == torch.arange(3)).all()
    assert predicted.diagonal().min() > 0.6


def test_predictions_are_the_softmax_over_classes_and_the_sigmoid_of_each_label():
    outputs = torch.tensor([[0.0, np.log(2), np.log(5)]])
    assert classification().predict(answer(outputs), {}).numpy() == pytest.approx(np.array([[1, 2, 5]]) / 8)
    assert multilabel().predict(answer(outputs), {}).numpy() == pytest.approx(np.array([[1 / 2, 2 / 3, 5 / 6]]))


def test_the_first_loss_is_the_entropy_of_the_shares():
    many = LABELS.repeat(1000, 1)
    shares = torch.tensor([4.0, 2.0, 1.0]) / 7
    bias = classification().first_bias(many).repeat(7000, 1)
    torch.testing.assert_close(loss(classification(), bias, many), -(shares * shares.log()).sum(), atol=1e-4, rtol=0)
    bias = multilabel().first_bias(many).repeat(7000, 1)
    entropy = -(shares * shares.log() + (1 - shares) * (1 - shares).log()).mean()
    torch.testing.assert_close(loss(multilabel(), bias, many), entropy, atol=1e-4, rtol=0)


def test_distances_are_symmetric_kl():
    one, two = torch.randn(4, 3), torch.randn(4, 3)
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(q, p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(classification().distance(one, two), kl / 2)
    bernoulli = (one.sigmoid() - two.sigmoid()) * (one - two)  # the sum of both divergences of two coins
    torch.testing.assert_close(multilabel().distance(one, two), bernoulli.mean() / 2)
    assert classification().distance(one, one) == multilabel().distance(two, two) == 0


@pytest.mark.parametrize("task", [classification(), multilabel()])
def test_wrappers_add_squared_logits_and_the_distance(task):
    one, two = torch.randn(7, 3), torch.randn(7, 3)
    squeezed, both = LogitSqueezing(task, 0.5), iter([one, two])
    squares = one.pow(2).mean() + two.pow(2).mean()
    out = RDrop(squeezed, 2.0).loss(lambda batch: ModelOutput(next(both), None), {"targets": LABELS})
    plain = loss(task, one, LABELS) + loss(task, two, LABELS)
    torch.testing.assert_close(out.loss, plain / 2 + 0.25 * squares + 2.0 * task.distance(one, two))


def test_weights_reach_the_task_through_its_wrappers_and_survive_no_save():
    overrides = ["task.class_weights={kind: balanced}", "task.squeeze=0.1", "task.r_drop={}", "model.dropout=0.1"]
    task = build_task(load_recipe("tiny", [*SINGLE, *overrides, "task.classes=[1, 2, 3]"]))
    task.fit(LABELS)
    assert task.task.task._weights.shape == (1, 3)
    assert not task.task.task.state_dict(), "they are fitted anew where training goes on"


def test_several_labels_learn_one_weight_a_column():
    task = multilabel(weighting="uncertainty")
    (s,) = task.parameters()
    outputs = torch.randn(5, 3)
    each = F.binary_cross_entropy_with_logits(outputs, SEVERAL, reduction="none").mean(0)
    with torch.no_grad():
        s.copy_(torch.tensor([0.5, 0.0, -1.0]))
    out = task.loss(answer(outputs), {"targets": SEVERAL})
    torch.testing.assert_close(out.loss, ((-s).exp() * each + s).sum())
    assert list(out.logs) == list(NAMES)


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("balanced", [40, 40, 40]),
        ("sqrt", [65, 38, 17]),
        ({30: 3.0, 7: 5.0}, [51, 52, 18]),  # 85 once, 29 three times and 6 five times are 202 in all
        ({29: 3.0, 6: 5.0}, [77, 26, 16]),  # a class of 29 is not below 29
    ],
)
def test_sampling_draws_classes_evenly_anew_each_epoch_and_the_same_again(way, wanted):
    classes = np.repeat([0, 1, 2], [85, 29, 6])  # the roots' shares: 0.54, 0.32, 0.14
    rows = np.random.default_rng(3).permutation(240)[:120]
    all_classes = np.full(240, 9)
    all_classes[rows] = classes
    sampling = Sampling(all_classes, partial(chances, way))
    batches = [training_batches(np.ones(240), rows, 8, 42, epoch, sampling) for epoch in (0, 1, 0)]
    drawn = [np.concatenate(each) for each in batches]
    assert len(batches[0]) == 15, "as many steps as without it"
    assert np.array_equal(drawn[0], drawn[2])
    assert sorted(drawn[0]) != sorted(drawn[1])
    for each in drawn[:2]:
        counts = np.bincount(all_classes[each], minlength=3)
        np.testing.assert_allclose(counts, wanted, atol=1)
        times = np.bincount(each, minlength=240)[rows[:85]]
        assert times.max() - times.min() <= 1, "rows of a class come as often as each other"


def test_rows_of_several_labels_count_for_their_rarest():
    targets = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]], np.float32)
    assert rarest_labels(targets, np.arange(4)).tolist() == [1, 2, 0, 3, 1]
    assert rarest_labels(LABELS.numpy(), np.arange(7)).tolist() == [0, 0, 0, 0, 1, 1, 2]


def test_classes_of_numbers_are_read_as_texts():
    recipe = load_recipe("tiny", [*SINGLE, "task.classes=[3, 1, 2]"])
    assert recipe.task.classes == ("3", "1", "2")
    assert recipe.task.outputs(1) == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task={kind: classification}"], "names 6 columns, and one holds the labels"),
        ([*SINGLE, "metric=mcrmse"], "metric=mcrmse compares numbers, .* set metric=log_loss .*task.kind=regression"),
        ([*SINGLE, "metric=spearman"], "compares numbers, and task.kind=classification predicts probabilities"),
        (["task={kind: multilabel}"], "metric=mcrmse compares numbers, and task.kind=multilabel predicts"),
        (["metric=macro_f1"], "metric=macro_f1 compares labels, and task.kind=regression predicts numbers; set metric"),
        (["task={kind: binned}", "metric=log_loss"], "task.kind=classification or multilabel"),
        ([*SINGLE, "task.classes=[a]"], "at least 2"),
        ([*SINGLE, "task.classes=[a, a]"], "classes must differ"),
        ([*SINGLE, "task.classes=[a, yes]"], "task.classes.1: .*valid string, got True"),
        ([*SINGLE, "task.classes=[a, fold]"], "'fold' is the name of another column of oof.csv"),
        ([*SINGLE, "task.classes=[a, text_id]"], "'text_id' is the name of another column"),
        ([*SINGLE, "task.classes=[a, true_b]"], "rename this label in train.csv"),
        ([*SINGLE, "task.class_weights={kind: power, power: 1.0}"], "less than 1"),
        ([*SINGLE, "task.class_weights={kind: balanced, beta: 0.9}"], "beta"),
        ([*SINGLE, "task.class_weights={kind: even}"], "'balanced', 'power', 'effective'"),
        ([*SINGLE, "task.weighting=uncertainty"], "nothing to weigh"),
        ([*SINGLE, "task.loss=mse"], "task.loss: belongs to kind regression"),
        (["task.class_weights={kind: balanced}"], "belongs to kinds classification, multilabel"),
        (["train.sampling=balanced"], "draws essays by their label, and task.kind=regression has numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(overrides, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", overrides)
