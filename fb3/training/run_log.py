"""The log of a run: JSON lines in log.jsonl, the same in words on the screen, and numbers for experiment trackers."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fb3.system.disk_space import cannot_write
from fb3.system.files import atomic_file
from fb3.system.progress import Advance, say

_MOST_SHOWN = 8  # columns in a line on the screen; log.jsonl and scores.json have all


class RunLog:
    """Writes events of one run; silent on all but the main process.

    Args:
        path: log.jsonl, appended to.
        main: whether this is the main process.
        track: takes (values, step) for experiment trackers.
    """

    def __init__(self, path: Path, main: bool, track: Callable[[dict[str, float], int], None]) -> None:
        self._path = path
        self._main = main
        self._track = track
        self._offset, self._steps = 0, 0
        if main and path.is_file() and not path.read_bytes().endswith(b"\n"):  # killed in the middle of a line
            self._keep(self._complete_lines())

    def lines(self, fold: int) -> int:
        """The number of a fold's lines."""
        return sum(_fold_of(line) == fold for line in self._complete_lines())

    def cut(self, fold: int, lines: int) -> None:
        """Keeps only the first `lines` lines of a fold, which writes the later ones again; other folds' lines stay."""
        kept, seen = [], 0
        for line in self._complete_lines():
            seen += _fold_of(line) == fold
            if _fold_of(line) != fold or seen <= lines:
                kept.append(line)
        self._keep(kept)

    def _keep(self, lines: list[bytes]) -> None:
        with atomic_file(self._path) as aside:
            aside.write_bytes(b"".join(lines))

    def _complete_lines(self) -> list[bytes]:
        """The lines without the last one if a killed process left it half written."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        return [line for line in lines if line.endswith(b"\n")]

    def fold(self, fold: int, train: int, valid: int, steps: int, device: str, done: int = 0) -> None:
        """Logs the start of a fold, or that it goes on after `done` steps.

        Trackers want steps that never fall, so each fold counts on from the one before.
        """
        self._offset, self._steps = self._offset + self._steps, steps
        if done:
            self.event("resume", f"fold {fold}: goes on after step {done} of {steps}, {device}", fold=fold, step=done)
            return
        self.event(
            "fold",
            f"fold {fold}: {train} essays to train on, {valid} to validate, {steps} steps, {device}",
            fold=fold,
            train=train,
            valid=valid,
            steps=steps,
        )

    def event(self, kind: str, line: str = "", **fields: Any) -> None:
        """Writes a JSON line of `fields`; `line` goes to the screen."""
        if not self._main:
            return
        fields = {name: finite_or_none(value) for name, value in fields.items()}
        line_of_json = json.dumps({"event": kind, "time": round(time.time(), 3), **fields}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line_of_json)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        if line:
            say(line)

    def window(self, advance: Advance, *, terms: dict[str, float], **fields: float) -> None:
        """Logs the means of a few optimizer steps, also on the progress line; the loss's `terms` are unweighted."""
        parts = "".join(f" {name} {value:.4f}" for name, value in terms.items())
        note = f"loss {fields['loss']:.4f}{parts} mean {fields['mean_loss']:.4f} norm {fields['gradient_norm']:.2f}"
        advance(note=f"{note} rate {fields['rate']:.1e}")
        self.event("step", **fields, **({"terms": terms} if terms else {}))
        names = ("loss", "mean_loss", "gradient_norm", "rate", "head_rate")
        prefix = f"fold{fields['fold']}"
        values = {name: fields[name] for name in names} | {f"terms/{name}": value for name, value in terms.items()}
        self._track({f"{prefix}/{name}": value for name, value in values.items()}, self._offset + int(fields["step"]))

    def evaluation(
        self, fold: int, epoch: int, step: int, metric: str, score: Any, best: bool, elapsed: float, name: str = ""
    ) -> None:
        """Logs an evaluation: validation loss, score, score of each column; `name` stands in the place of the fold."""
        loss = "" if math.isnan(score.loss) else f" loss {score.loss:.4f}"
        self.event(
            "evaluation",
            f"{name or f'fold {fold}'} epoch {epoch} step {step}: {metric} {score.overall:.4f}"
            f"{' (best)' if best else ''}{loss}{columns_in_words(score.columns)} | {elapsed / 60:.1f} min",
            fold=fold,
            epoch=epoch,
            step=step,
            valid_loss=score.loss,
            score=score.overall,
            columns=score.columns,
            best=best,
            elapsed=round(elapsed, 1),
        )
        self._track({f"fold{fold}/valid_loss": score.loss, f"fold{fold}/score": score.overall}, self._offset + step)


def columns_in_words(columns: dict[str, float]) -> str:
    """The columns' scores, for a line on the screen; nothing where there are none, or too many to be read."""
    words = " ".join(f"{name} {score:.4f}" for name, score in columns.items())
    return f" | {words}" if 0 < len(columns) <= _MOST_SHOWN else ""


def _fold_of(line: bytes) -> Any:
    try:
        return json.loads(line).get("fold")
    except (ValueError, AttributeError, RecursionError):  # a line that fb3 did not write
        return None


def finite_or_none(value: Any) -> Any:
    """The value, with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
