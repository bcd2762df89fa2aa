"""The report of an inference: each fold's fate, told at once, summed up at the end, written beside the submission."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fb3.system.files import write_json
from fb3.system.progress import say


@dataclass
class Summary:
    """The folds and phases of one inference.

    path: the report's file. start: by time.monotonic(). folds: name, status, and seconds or reason of each. phases:
    seconds from the start to the end of each. flops: one fold's, for each run. warnings: faults of the competition's
    files. partial: whether a fold that was cut off is in the submission. error: the reason why inference stopped.
    """

    path: Path
    start: float
    folds: list[dict[str, Any]] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    partial: bool = False
    error: str | None = None

    def __post_init__(self) -> None:
        with suppress(OSError):  # an older report must not stand beside a newer submission
            self.path.unlink(missing_ok=True)

    def phase(self, name: str) -> None:
        """Records the end of a phase."""
        self.phases[name] = round(time.monotonic() - self.start, 2)

    def warn(self, warnings: list[str]) -> None:
        """Tells faults of the competition's files now, and once more at the end."""
        self.warnings += warnings
        for warning in warnings:
            say(f"WARNING: {warning}")

    def used(self, name: str, seconds: float) -> None:
        """Records a fold that is in the submission."""
        self.folds.append({"fold": name, "status": "used", "seconds": round(seconds, 2)})

    def left_out(self, name: str, reason: str, status: str = "left out") -> None:
        """Records a fold that is not in the submission, or not as a whole."""
        self.folds.append({"fold": name, "status": status, "reason": reason})
        say(f"WARNING: {name} {status}: {reason}")

    def finish(self, out: Path, rows: int) -> None:
        """Warns of each fold that is not in the submission, and writes the report."""
        self.phase("all")
        used = sum(fold["status"] == "used" for fold in self.folds)
        lines = [f"{out}: {rows} rows from {used} of {len(self.folds)} folds in {self.phases['all']:.1f} s"]
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        for fold in self.folds:
            if fold["status"] != "used":
                lines.append(f"WARNING: without {fold['fold']} ({fold['status']}): {fold['reason']}")
        for line in lines:
            say(line)
        content = {"rows": rows, "error": self.error, "warnings": self.warnings, "folds": self.folds}
        try:
            content |= {"phases": self.phases, "flops": self.flops, "peak_memory": peak_memory()}
            write_json(content, self.path)
        except ValueError as error:  # a failed write, or a name that is no UTF-8, must not cost the submission
            say(f"WARNING: {error}")


def peak_memory() -> int:
    """Most bytes that this process has held, plus the most of the largest child that has ended."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
