"""Progress of long work: a bar on a terminal, a plain line a minute elsewhere, nothing when told so."""

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
    """Called after each piece of work."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...


@cache
def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)  # one for all: a line printed through it moves a running bar down


def escape_output() -> None:
    """Standard output and error write as \\u2026 what their encoding does not have; Python does so on error alone.

    Every command calls it, and every function that prints to standard output: a score or a report is not to be lost to
    a terminal that is ASCII or Latin-1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams are none, and take all of Unicode
            stream.reconfigure(errors="backslashreplace")


def as_command(parts: Iterable[object]) -> str:
    """A command line that this system's shell takes as it stands."""
    words = [str(part) for part in parts]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def say(line: str) -> None:
    """A line for the user, on standard error, above a bar where one runs."""
    if sys.stderr.isatty():
        _console().print(line, markup=False, highlight=False)
    else:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    title: str, total: int, shown: bool = True, every_seconds: float = 60.0, done: int = 0
) -> Iterator[Advance]:
    """Shows how far `total` pieces of work are.

    Args:
        title: names the work.
        total: pieces of work.
        shown: False for a process that should stay silent.
        every_seconds: time between two plain lines.
        done: pieces that an earlier start did.
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
        yield lambda amount=1, note="": bar.update(task, advance=amount, note=note)


def _lines(title: str, total: int, every_seconds: float, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    before = done

    def advance(amount: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= every_seconds:
            last = now
            left = (now - start) / max(1, done - before) * (total - done)
            minutes = f"{(now - start) / 60:.1f} min, about {left / 60:.1f} left"
            say(f"{title}: {done}/{total}, {minutes} {note}".rstrip())

    yield advance
