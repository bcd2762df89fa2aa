"""Forms of blends, compared with scipy's and with counts by hand; ensembles blend in them and score what they say."""

import numpy as np
import pytest
from scipy.special import expit, logit, softmax
from scipy.stats import gmean, rankdata

from fb3.ensembles.blend_forms import FORMS, into_form, out_of_form
from fb3.ensembles.comparison import METHODS, Stack
from fb3.targets.metrics import metric_of

WEIGHTS = np.array([0.5, 0.3, 0.2])


def probabilities(exclusive, seed=0):
    """Probabilities (3, 60, 4) of three members, and truths (60, 4)."""
    draw = np.random.default_rng(seed)
    truth = np.eye(4)[draw.integers(4, size=60)] if exclusive else (draw.random((60, 4)) < 0.3).astype(float)
    logits = 2 * truth + draw.normal(0, 1.5, (3, 60, 4))
    return softmax(logits, axis=-1) if exclusive else expit(logits - 1), truth


def blended(form, members, exclusive):
    mixed = np.tensordot(WEIGHTS, [into_form(form, each, exclusive) for each in members], 1)
    return out_of_form(form, mixed, members, exclusive)


@pytest.mark.parametrize("exclusive", [True, False])
def test_forms_are_what_their_names_say(exclusive):
    members, _ = probabilities(exclusive)
    np.testing.assert_allclose(blended("values", members, exclusive), np.average(members, axis=0, weights=WEIGHTS))
    of_logits = blended("logits", members, exclusive)
    if exclusive:
        products = gmean(members, axis=0, weights=WEIGHTS[:, None, None])
        np.testing.assert_allclose(of_logits, products / products.sum(1, keepdims=True))
    else:
        np.testing.assert_allclose(of_logits, expit(np.average(logit(members), axis=0, weights=WEIGHTS)))
    ranked = np.average(rankdata(members, axis=1), axis=0, weights=WEIGHTS)
    order = rankdata(np.round(ranked, 9), axis=0)
    np.testing.assert_allclose(rankdata(np.round(blended("ranks", members, exclusive), 12), axis=0), order)


def test_votes_are_counted_and_probabilities_decide_between_classes_of_as_many():
    members = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.5, 0.3]], [[0.4, 0.35, 0.25]], [[0.0, 0.9, 0.1]]])
    votes = np.mean([into_form("votes", each, True) for each in members], 0)
    np.testing.assert_allclose(votes, [[0.5, 0.5, 0.0]], atol=1e-5)
    assert votes.argmax() == 1
    np.testing.assert_allclose(into_form("votes", np.array([[0.6, 0.7, 0.2]]), False), [[1, 1, 0]], atol=1e-5)


def test_certain_members_leave_logits_finite():
    members = np.array([[[1.0, 0.0]], [[0.3, 0.7]]])
    for exclusive in (True, False):
        mixed = np.mean([into_form("logits", each, exclusive) for each in members], 0)
        found = out_of_form("logits", mixed, members, exclusive)
        assert np.isfinite(found).all()
        assert 0.5 < found[0, 0] < 1.0


@pytest.mark.parametrize("form", [form for form in FORMS if form != "ranks"])
@pytest.mark.parametrize(("metric", "exclusive"), [("log_loss", True), ("macro_f1", True), ("log_loss", False)])
def test_a_stack_scores_the_blend_of_its_form(form, metric, exclusive):
    members, truth = probabilities(exclusive)
    metric = metric_of(metric)
    stack = Stack(members, truth, np.arange(60) % 5, metric, list("abcd"), exclusive, form=form)
    for blend in stack.fit_all():
        expected = np.tensordot(blend.weights[0], [into_form(form, each, exclusive) for each in members], 1)
        if blend.shared:
            by_hand = metric.score(truth, out_of_form(form, expected, members, exclusive), list("abcd"), exclusive)
            assert blend.same == pytest.approx(by_hand.overall)
    assert {blend.method for blend in stack.fit_all()} == set(METHODS)
