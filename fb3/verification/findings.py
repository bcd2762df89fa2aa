"""Findings of a verification, and the run under check that collects them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fb3.errors import Fb3Error

Kind = Literal["ok", "FAULT", "not made", "note"]


class Finding(NamedTuple):
    """The result of one check, in one line; "not made" is a check that was impossible, a note no check at all."""

    kind: Kind
    text: str


@dataclass
class Report:
    """All findings about a run folder or a bundle."""

    path: Path
    kind: Literal["run", "bundle", "encoder"]
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """The faults, each with its file and the mend."""
        return [finding.text for finding in self.findings if finding.kind == "FAULT"]

    @property
    def passed(self) -> bool:
        """Whether there is no fault; a check that was not made is no fault."""
        return not self.faults

    def text(self) -> str:
        """One line per finding, and a last one that sums up."""
        lines = [f"{kind:<9} {text}" for kind, text in self.findings]
        skipped = sum(finding.kind == "not made" for finding in self.findings)
        verdict = f"{len(self.faults)} faults" if self.faults else "sound"
        return "\n".join([*lines, f"{self.path}: {self.kind}, {verdict}{f', {skipped} not made' if skipped else ''}"])

    def add(self, kind: Kind, text: str) -> None:
        self.findings.append(Finding(kind, text))

    @contextmanager
    def check(self, text: str) -> Iterator[None]:
        """Adds the findings of a `with` block: an error is a fault; without faults, `text` is ok."""
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
    """A run under check, in its own folder or in a bundle."""

    report: Report
    path: Path
    data: Path | None  # the folder of its train.csv, where known
    recorded: dict[str, Any] | None  # environment.json; None in a bundle
    digest: Callable[[Path], str | None]  # a file's hash, None where it is missing; in a bundle, the manifest's
    essays: int  # number of each fold's essays to predict again
    prefix: str = ""  # begins the findings' texts
    packed: list[Path] | None = None  # the fold folders in a bundle's manifest; None for a run folder
    half: bool = False  # whether the bundle holds the weights in fp16

    @property
    def again(self) -> str:
        """The mend of a file that was changed, as the end of a sentence."""
        return "copy the run again" if self.packed is None else "build the bundle anew"

    def check(self, text: str) -> AbstractContextManager[None]:
        return self.report.check(self.prefix + text)

    def add(self, kind: Kind, text: str) -> None:
        self.report.add(kind, text if kind == "FAULT" else self.prefix + text)
