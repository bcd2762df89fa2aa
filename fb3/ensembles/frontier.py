"""Sets of members on the way from all of them to a single one: honest score against seconds at inference."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fb3.ensembles.comparison import Blend, Stack
from fb3.errors import Fb3Error
from fb3.system.files import write_csv
from fb3.system.progress import say

_CHOSEN = "Sets are chosen by these scores, so the score of the one taken is a little too good, here and below."
_LEAST_SAVED = 1e-6  # seconds: a member that takes no time of its own saves none when it leaves
CSV, PICTURE = "frontier.csv", "frontier.png"


class SharedSeconds(NamedTuple):
    """Seconds that some members, by their places, take together once: vectors of the pictures that they read."""

    seconds: float
    members: frozenset[int]


class TimeLimit(NamedTuple):
    """A time that inference may take.

    seconds: the limit. start: seconds before the first fold. of_members: (M,), seconds of all folds of each. machine:
    names the machine and the essays, for messages. shared: seconds that come once for several members.
    """

    seconds: float
    start: float
    of_members: Sequence[float]
    machine: str
    shared: Sequence[SharedSeconds] = ()

    def of(self, members: Iterable[int]) -> float:
        """Seconds of an inference with these members."""
        members = [*members]
        own = sum(self.of_members[member] for member in members)
        return self.start + own + sum(each.seconds for each in self.shared if each.members & {*members})


class MemberSet(NamedTuple):
    """A set of members: their places, the ones that left last (none: all, or one that was tried alone), seconds, honest
    score, and how it differs from all.

    better: by how much the score is better than with all members; error: its standard error.
    """

    members: list[int]
    left: list[int]
    seconds: float
    honest: float
    better: float
    error: float


class Frontier:
    """The way of backward elimination: the member leaves that costs the least honest score for each second saved.

    Members that read the same pictures may also leave together, because only then the pictures' time is saved.

    Args:
        limit: the set of the best honest score within it is `taken`.
        names: the members'.
        stack: the members.
        blend: says how sets are weighed; after greedy selection by least squares, which weigh new sets alike.

    Raises:
        Fb3Error: no set fits into the time.
    """

    def __init__(self, limit: TimeLimit, names: Sequence[str], stack: Stack, blend: Blend) -> None:
        self.limit, self.names, self.metric = limit, names, stack.metric
        blend = blend._replace(method="simplex") if blend.method == "greedy" else blend
        self.method, self.sets = blend.method, _eliminated(limit, stack, blend)
        # A cheap member may have left before the last one.
        self.alone = _alone(limit, stack, blend, self.sets) if self.sets[-1].seconds > limit.seconds else []
        within = [each for each in [*self.sets, *self.alone] if each.seconds <= limit.seconds]
        if not within:
            least = min([*self.sets, *self.alone], key=lambda each: each.seconds)
            raise Fb3Error(
                f"--limit: no set of members fits into {limit.seconds:.0f} s: {names[least.members[0]]} alone takes "
                f"about {least.seconds:.0f} s on {limit.machine}; raise the limit, or add a cheaper member"
            )
        self.taken = min(within, key=lambda each: (round(stack.sign * each.honest, 6), each.seconds))

    def text(self) -> list[str]:
        """The table of sets."""
        head = f"{'seconds':>9}{self.metric.title:>10}  better than all       members"
        return [
            f"on {self.limit.machine}; limit {self.limit.seconds:.0f} s; sets weighed by {self.method}",
            head,
            *map(self._line, [*self.sets, *self.alone]),
            _CHOSEN,
        ]

    def _line(self, each: MemberSet) -> str:
        left = ", ".join(self.names[member] for member in each.left)
        if len(each.members) == len(self.names):
            words = f"{'':<22}{len(self.names)}"
        elif not each.left:
            words = f"{each.better:+.5f} ± {each.error:.5f}   {self.names[each.members[0]]} alone"
        else:
            words = f"{each.better:+.5f} ± {each.error:.5f}   {len(each.members)}, without {left}"
        return f"{each.seconds:>9.0f}{each.honest:>10.5f}  {words}{' (taken)' if each is self.taken else ''}"

    def write(self, out: Path) -> None:
        """Writes frontier.csv, and frontier.png where matplotlib is there."""
        every = [*self.sets, *self.alone]
        table = pd.DataFrame(every).drop(columns=["members", "left"])
        table.insert(0, "members", [" ".join(self.names[each] for each in row.members) for row in every])
        write_csv(table, out / CSV)
        way = table.iloc[: len(self.sets)]
        try:
            from matplotlib.figure import Figure
        except ImportError:
            say(f"no {PICTURE} without matplotlib: pip install matplotlib, or plot {CSV}")
            return
        axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).subplots()
        axes.errorbar(way["seconds"], way["honest"], yerr=way["error"], fmt="o-", capsize=2)
        axes.plot(self.taken.seconds, self.taken.honest, "s", markersize=9, label="taken")
        axes.axvline(self.limit.seconds, linestyle="--", color="grey", label="limit")
        last = 0.0
        for each in reversed(self.sets):
            if each.seconds > 1.08 * last:  # numbers closer than that would stand on each other
                axes.annotate(str(len(each.members)), (each.seconds, each.honest), (3, 5), textcoords="offset points")
                last = each.seconds
        axes.set(xlabel=f"seconds on {self.limit.machine}", ylabel=f"honest {self.metric.title}", xscale="log")
        axes.set_title("Sets of members, by their number; bars: standard error of the difference to all", fontsize=9)
        axes.legend()
        figure.savefig(out / PICTURE, dpi=120)


def _eliminated(limit: TimeLimit, stack: Stack, blend: Blend) -> list[MemberSet]:
    """The sets from all members down to one."""
    values_of, every = stack.subsets(blend), np.ones(stack.size, bool)
    values = values_of(every)
    honest, draws = stack.score(values).overall, stack.draw_scores(values)
    sets = [MemberSet(np.flatnonzero(every).tolist(), [], limit.of(range(stack.size)), honest, 0.0, 0.0)]
    while len((last := sets[-1]).members) > 1:
        found = []
        for left in _may_leave(last.members, limit):
            members = [member for member in last.members if member not in left]
            values = values_of(np.isin(np.arange(stack.size), members))
            score = stack.score(values).overall
            found.append((MemberSet(members, left, limit.of(members), score, 0.0, 0.0), values))
        costs = [
            stack.sign * (each.honest - last.honest) / max(last.seconds - each.seconds, _LEAST_SAVED)
            for each, _ in found
        ]
        best, values = found[int(np.argmin(costs))]
        error = float(np.nanstd(draws - stack.draw_scores(values), ddof=1))
        sets.append(best._replace(better=stack.sign * (honest - best.honest), error=error))
    return sets


def _may_leave(members: list[int], limit: TimeLimit) -> list[list[int]]:
    """Each member, and the members that share seconds, where others stay."""
    together = ([member for member in members if member in each.members] for each in limit.shared)
    return [[member] for member in members] + [some for some in together if 1 < len(some) < len(members)]


def _alone(limit: TimeLimit, stack: Stack, blend: Blend, sets: Sequence[MemberSet]) -> list[MemberSet]:
    """Each member by itself, except the last of the way down."""
    values_of, (whole, last) = stack.subsets(blend), (sets[0], sets[-1])
    draws, found = stack.draw_scores(values_of(np.ones(stack.size, bool))), []
    for member in (each for each in range(stack.size) if [each] != last.members):
        values = values_of(np.arange(stack.size) == member)
        honest = stack.score(values).overall
        better, error = (
            stack.sign * (whole.honest - honest),
            float(np.nanstd(draws - stack.draw_scores(values), ddof=1)),
        )
        found.append(MemberSet([member], [], limit.of([member]), honest, better, error))
    return found
