"""Messages and progress for the user: a bar on a terminal, a plain line per minute elsewhere."""

import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Called after each piece of work; a note stays until the next one."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...


@cache
def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)  # shared, so that a printed line moves a running bar down


def escape_output() -> None:
    """Makes standard output and error escape characters that their encoding lacks, as \\u2026.

    Every command and every function that prints to standard output calls it, so that no score or report is lost on an
    ASCII or Latin-1 terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams are of other types, and take all of Unicode
            stream.reconfigure(errors="backslashreplace")


def as_command(parts: Iterable[object]) -> str:
    """A command line quoted for this system's shell."""
    words = [str(part) for part in parts]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def say(line: str) -> None:
    """Prints a line to standard error, above a running progress bar."""
    if sys.stderr.isatty():
        _console().print(line, markup=False, highlight=False)
    else:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    title: str, total: int, shown: bool = True, every_seconds: float = 60.0, done: int = 0
) -> Iterator[Advance]:
    """Shows the progress of long work on standard error.

    Args:
        title: names the work.
        total: pieces of work.
        shown: False for a process that should stay silent.
        every_seconds: time between two plain lines.
        done: pieces that an earlier run completed.

    Yields:
        A function to call after each piece.
    """
    if not shown:
        yield lambda amount=1, note="": None
    elif sys.stderr.isatty():
        yield from _bar(title, total, done)
    else:
        yield from _lines(title, total, every_seconds, done)


def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda amount=1, note="": bar.update(task, advance=amount, **({"note": note} if note else {}))


def _lines(title: str, total: int, every_seconds: float, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    before, known = done, ""

    def advance(amount: int = 1, note: str = "") -> None:
        nonlocal done, last, known
        done, known = done + amount, note or known
        now = time.monotonic()
        if now - last >= every_seconds:
            last = now
            left = (now - start) / max(1, done - before) * (total - done)
            minutes = f"{(now - start) / 60:.1f} min, about {left / 60:.1f} left"
            say(f"{title}: {done}/{total}, {minutes} {known}".rstrip())

    yield advance
