"""Soups: the right ingredients, the right averages, the better of all kept."""

import torch

from fb3.recipe.training import SoupSettings
from fb3.targets.metrics import Score
from fb3.training.soup import Soup


def filled(value):
    scorer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        for p in scorer.parameters():
            p.fill_(value)
    return scorer


def cooked(kind, offers, score_of, top=3):
    """The values of the soups that were tried."""
    soup, tried = Soup(SoupSettings(kind=kind, top=top)), []
    for value, score in offers:
        soup.add(Score(score, {}), filled(value))
    scorer = filled(0.0)

    def evaluate():
        tried.append(round(scorer.weight[0, 0].item(), 4))
        return Score(score_of(tried[-1]), {})

    soup.try_averages(scorer, evaluate)
    return tried


def test_the_best_are_kept_and_averaged():
    offers = [(1.0, 0.9), (2.0, 0.5), (4.0, 0.6), (6.0, 0.7), (9.0, float("nan"))]
    assert cooked("uniform", offers, lambda value: 1.0) == [4.0]


def test_greedy_keeps_what_betters_the_score():
    offers = [(2.0, 0.5), (4.0, 0.6), (6.0, 0.7)]
    assert cooked("greedy", offers, lambda value: {3.0: 0.4, 4.0: 0.45}[value]) == [3.0, 4.0]
    assert cooked("greedy", offers, lambda value: {3.0: 0.55, 4.0: 0.45}[value]) == [3.0, 4.0]
    assert cooked("greedy", [(2.0, 0.5), (4.0, 0.6), (9.0, 0.7)], lambda v: 0.55) == [3.0, 5.5]


def test_one_evaluation_makes_no_soup():
    assert cooked("greedy", [(2.0, 0.5)], lambda value: 0.0) == []
