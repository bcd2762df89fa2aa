"""The report of a rehearsal, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from packaging.utils import canonicalize_name

from fb3.bundles.images import own_requirements
from fb3.models.flops import T4_FLOPS
from fb3.runs.run_folder import Member

PUBLIC = "public"  # name of the run on the public files; the others bear the names of the mount layouts


def pass_name(name: str) -> str:
    """One of the rehearsal's runs, for messages."""
    return "public files" if name == PUBLIC else f"{name} layout"


@dataclass
class RehearsalReport:
    """The outcome of a rehearsal; it passed where there is no failure."""

    versions: dict[str, str]  # packages of the image that this machine has in another version or not at all
    failures: list[str] = field(default_factory=list)  # each with the run in which it happened
    notes: list[str] = field(default_factory=list)
    # Rows, seconds by phase and peak memory in bytes of each run: "public", then the mount layouts "new" and "old".
    layouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    projection: dict[str, float] = field(default_factory=dict)  # seconds for the hidden rows, share of the time limit

    @property
    def passed(self) -> bool:
        return not self.failures

    def text(self) -> str:
        """The report as lines of text."""
        lines = ["PASSED" if self.passed else "FAILED", *(f"  failure: {failure}" for failure in self.failures)]
        for name, layout in self.layouts.items():
            phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in layout["phases"].items())
            memory = layout["peak_memory"] / 2**30
            lines.append(f"  {pass_name(name)}: {layout['rows']} rows in {layout['seconds']:.1f} s ({phases})")
            lines.append(f"    peak memory {memory:.2f} GiB")
        if self.projection:
            p = self.projection
            lines.append(
                f"  {p['rows']:.0f} hidden rows: about {p['here']:.0f} s on this machine, {p['share_here']:.1%} of the "
                f"limit of {p['limit_hours']:.0f} h; on a T4, by FLOPs, {p['t4']:.0f} s, {p['share_t4']:.1%}"
            )
        direct = {canonicalize_name(requirement.name) for requirement in own_requirements()} | {"python"}
        named = [f"{name} {words}" for name, words in self.versions.items() if name in direct]
        if named:
            more = f"; and {len(self.versions) - len(named)} more that these need (--json lists them)"
            lines.append(f"  other versions here than in the image: {', '.join(named)}{more}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def json(self) -> str:
        """The report as JSON."""
        return json.dumps({"passed": self.passed, **asdict(self)}, indent=1, ensure_ascii=False)


def projection(layout: dict[str, Any] | None, members: Sequence[Member]) -> dict[str, float]:
    """The seconds that the hidden rows will take, by a run on equally many; empty where it failed or lacks a member."""
    if not layout or any(member.name not in layout["flops"] for member in members):
        return {}
    flops = sum(len(member.folds) * layout["flops"][member.name] for member in members)
    limit = min(m.recipe.predict.limit_hours for m in members)
    start = layout["phases"]["tokens"]
    return {
        "rows": layout["rows"],
        "here": layout["seconds"],
        "t4": round(start + flops / T4_FLOPS, 1),
        "share_t4": (start + flops / T4_FLOPS) / (limit * 3600),
        "share_here": layout["seconds"] / (limit * 3600),
        "limit_hours": limit,
    }
