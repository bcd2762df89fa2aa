"""What was found in a run folder or a bundle."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fb3.errors import Fb3Error

Kind = Literal["ok", "FAULT", "not made", "note"]


class Finding(NamedTuple):
    """kind: what came of a check; not made: it could not be, note: there is nothing to check. text: one line."""

    kind: Kind
    text: str


@dataclass
class Report:
    """What was found in a run folder or a bundle."""

    path: Path
    kind: Literal["run", "bundle"]
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What is wrong, each with its file and the mend."""
        return [finding.text for finding in self.findings if finding.kind == "FAULT"]

    @property
    def passed(self) -> bool:
        """True without a fault; a check that was not made is none."""
        return not self.faults

    def text(self) -> str:
        """One line a finding, and one for all."""
        lines = [f"{kind:<9} {text}" for kind, text in self.findings]
        skipped = sum(finding.kind == "not made" for finding in self.findings)
        verdict = f"{len(self.faults)} faults" if self.faults else "sound"
        return "\n".join([*lines, f"{self.path}: {self.kind}, {verdict}{f', {skipped} not made' if skipped else ''}"])

    def add(self, kind: Kind, text: str) -> None:
        self.findings.append(Finding(kind, text))

    @contextmanager
    def part(self, text: str) -> Iterator[None]:
        """A check: what it raises is a fault; without one, `text` is ok."""
        before = len(self.faults)
        try:
            yield
        except (Fb3Error, OSError) as error:
            self.add("FAULT", str(error))
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # JSON of another form
            self.add("FAULT", f"{text}: a file is not of the form that fb3 writes ({error!r}); copy it again")
        if len(self.faults) == before:
            self.add("ok", text)


@dataclass
class RunCheck:
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
