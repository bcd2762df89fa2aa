"""Backward elimination: which member leaves, which set a limit takes, what is written."""

import numpy as np
import pandas as pd
import pytest

from fb3.ensembles.comparison import Stack, split
from fb3.ensembles.frontier import Frontier, SharedSeconds, TimeLimit
from fb3.errors import Fb3Error
from fb3.targets.metrics import METRICS
from tests.ensembles.test_comparison import COLUMNS, drawn

NAMES = ["good", "fair", "same", "random"]


@pytest.fixture
def stack():
    """A good and a fair member, another of the fair one's worth, and one that knows nothing."""
    truth, members = drawn(noise=(0.3, 0.5, 0.5))
    random = np.random.default_rng(1).normal(3, 0.7, (1, 400, 2))
    return Stack(np.concatenate([members, random]), truth, split(400), METRICS["mcrmse"], COLUMNS)


def frontier(stack, seconds, of_members=(100.0, 20.0, 40.0, 10.0), method="shrunk", shared=()):
    limit = TimeLimit(seconds, 5.0, of_members, "a machine", shared)
    return Frontier(limit, NAMES, stack, stack.fit(method, False))


def test_the_member_that_costs_least_for_its_seconds_leaves_first(stack):
    found = frontier(stack, 1000)
    assert [each.left for each in found.sets][:3] == [[], [3], [2]]
    assert [each.seconds for each in found.sets][:3] == [175, 165, 125]
    before = found.sets[1].honest
    costs = {}  # again, with a stack of the two members that stay
    for member, seconds in ((0, 100), (1, 20), (2, 40)):
        others = [each for each in range(3) if each != member]
        small = Stack(stack.values[others], stack.truth, stack.folds, stack.metric, COLUMNS)
        costs[member] = (small.fit("simplex", False).honest - before) / seconds
    assert min(costs, key=costs.get) == 2
    assert found.sets[0].better == 0
    assert found.sets[2].better == pytest.approx(found.sets[0].honest - found.sets[2].honest)


@pytest.mark.parametrize("method", ["equal", "greedy", "shrunk"])
def test_a_limit_takes_the_best_set_within_it(stack, method):
    for seconds in (1000, 130, 110):
        found = frontier(stack, seconds, method=method)
        within = [each for each in found.sets if each.seconds <= seconds]
        best = min(each.honest for each in within)
        alike = [each for each in within if each.honest < best + 2e-6]
        assert found.taken in alike
        assert found.taken.seconds == min(each.seconds for each in alike)
    with pytest.raises(Fb3Error, match=r"no set of members fits into 14 s: random alone takes about 15 s on a machine"):
        frontier(stack, 14)


def test_a_cheap_member_that_left_early_is_tried_alone_where_no_set_on_the_way_fits(stack):
    found = frontier(stack, 30)
    assert found.sets[-1].seconds > 30
    assert found.taken.members == [1]
    assert found.taken.honest == pytest.approx(stack.score(stack.predicted[1]).overall)
    assert any(line.endswith("fair alone (taken)") for line in found.text())


def test_shared_seconds_come_once_and_are_saved_by_the_last_that_leaves(stack):
    shared = [SharedSeconds(1000.0, frozenset({0, 1}))]
    found = frontier(stack, 5000, shared=shared)
    assert found.sets[0].seconds == 5 + 170 + 1000
    for each in found.sets:
        own = sum((100, 20, 40, 10)[member] for member in each.members)
        assert each.seconds == 5 + own + (1000 if {0, 1} & {*each.members} else 0)
    together = next(each for each in found.sets if each.left == [0, 1])
    assert not {0, 1} & {*together.members}
    assert "without good, fair" in "".join(found.text())
    # Alone, each of both saves a tenth of what they save together, so neither may leave for its own seconds.
    tight = frontier(stack, 60, shared=shared)
    assert tight.taken.members == [2]


def test_a_member_that_takes_no_time_saves_none(stack):
    shared = [SharedSeconds(10.0, frozenset({0, 1}))]
    found = frontier(stack, 5000, of_members=(0.0, 0.0, 40.0, 0.0), shared=shared)
    assert [each.seconds for each in found.sets] == [55, 55, 15, 15]
    assert [each.left for each in found.sets[:3]] == [[], [3], [2]]


def test_table_file_and_picture_tell_the_sets(stack, tmp_path, capsys):
    found = frontier(stack, 130)
    found.write(tmp_path)
    table = pd.read_csv(tmp_path / "frontier.csv")
    assert table["members"][0] == "good fair same random"
    assert table["seconds"].tolist() == [each.seconds for each in found.sets]
    assert sum(line.endswith(" (taken)") for line in found.text()) == 1
    if not (tmp_path / "frontier.png").is_file():
        assert "no frontier.png without matplotlib: pip install matplotlib" in capsys.readouterr().err
