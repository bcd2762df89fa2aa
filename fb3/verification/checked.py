"""A run folder under check: where it lies, and what is known of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fb3.verification.findings import Kind, Report


@dataclass
class Checked:
    """A run folder under check.

    data: the folder of its train.csv, where known. recorded: environment.json; none in a bundle. digest: of a file,
    none where it is missing; in a bundle the manifest's, for the files were held against that already. essays: of each
    fold, to predict again. prefix: of the names in the report. packed: the fold folders that a bundle must have. half:
    whether it packed the weights in fp16.
    """

    report: Report
    path: Path
    data: Path | None
    recorded: dict[str, Any] | None
    digest: Callable[[Path], str | None]
    essays: int
    prefix: str = ""
    packed: list[Path] | None = None
    half: bool = False

    @property
    def again(self) -> str:
        """The mend of what is no longer the run's own."""
        return "copy the run again" if self.packed is None else "build the bundle anew"

    def part(self, text: str) -> AbstractContextManager[None]:
        return self.report.part(self.prefix + text)

    def add(self, kind: Kind, text: str) -> None:
        self.report.add(kind, text if kind == "FAULT" else self.prefix + text)
