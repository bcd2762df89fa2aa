"""The folds of a bundle, one after the other, under a deadline; the submission grows better with each."""

import time
import traceback
from concurrent.futures import FIRST_COMPLETED, wait
from threading import TIMEOUT_MAX

import numpy as np

from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
from fb3.models.flops import forward_flops
from fb3.prediction.backends.choose import tell_backends
from fb3.prediction.predictions import Predictions, average
from fb3.runs.run_folder import Member, in_turn
from fb3.submission.background import Checks, Tokens
from fb3.submission.submission_file import Standing
from fb3.submission.summary import Summary
from fb3.submission.workers import Workers
from fb3.system.devices import pick_devices
from fb3.system.file_names import ENCODER, SECOND
from fb3.system.files import read_json
from fb3.system.progress import say

_UNSURE = 1.5  # a run that was not measured yet is taken to need so many times what another's speed promises


class FoldQueue:
    """Predicts fold by fold, the runs taking turns, so that each has its say when time runs out.

    Args:
        checks: of the folds' files.
        members: its runs that can be used.
        ids: of the essays, (N,).
        tokens: of the essays, for each run; may still be under way. A run's folds begin once its own are there, and no
            one waits for them beyond the deadline.
        standing: the submission.
        summary: takes what happens.
        ends: the deadline, by time.monotonic().
        strict: a fold that cannot be used is an error.
    """

    def __init__(
        self,
        checks: Checks,
        members: list[Member],
        ids: np.ndarray,
        tokens: Tokens,
        standing: Standing,
        summary: Summary,
        ends: float,
        strict: bool,
    ) -> None:
        recipe = members[0].recipe
        self.checks, self.standing, self.summary = checks, standing, summary
        self.ends, self.strict = ends, strict
        self.ids = ids
        devices = [str(device) for device in pick_devices(broken=recipe.predict.broken_gpu)]
        tell_backends((member.recipe for member in members), devices[0], strict)
        self.workers = Workers(devices)
        say(f"{len(self.ids)} essays, {sum(len(m.folds) for m in members)} folds of {len(members)} runs, on {devices}")
        self.tokens, self.members = tokens, members
        self.encoded: dict[str, Encoded] = {}
        self.clock = _Clock()
        self.summary.flops = self.clock.flops
        self.means: dict[str, Predictions] = {}
        self.counts = {member.name: 0 for member in members}

    def run(self) -> None:
        """All folds that fit.

        Raises:
            Fb3Error: no fold could be used.
        """
        left = in_turn(self.members)
        try:
            while left:
                member, k = left.pop(self._first_ready(left))
                if self._has_tokens(member):
                    self._turn(member, k)
                else:
                    left = [(other, fold) for other, fold in left if other is not member]
        finally:
            self.workers.close()
            for each in self.tokens.values():
                each.cancel()
        if not self.means and not self.summary.partial:
            why = self.summary.folds[0]["reason"] if self.summary.folds else "there is none"
            raise Fb3Error(f"no fold could be used ({why}); {self.standing.out} holds the training means")

    def _first_ready(self, left: list[tuple[Member, int]]) -> int:
        """Position of the first fold whose tokens are there; of the first of all where that takes too long."""
        asked = {self.tokens[member.name] for member, _ in left}
        if not any(each.done() for each in asked):
            wait(asked, min(max(0.0, self.ends - time.monotonic()), TIMEOUT_MAX), FIRST_COMPLETED)
        return next((at for at, (member, _) in enumerate(left) if self.tokens[member.name].done()), 0)

    def _has_tokens(self, member: Member) -> bool:
        """Notes a run's tokens; one that has none is left out as a whole."""
        if member.name in self.encoded:
            return True
        names = [f"{member.name}/{fold.name}" for fold in member.folds]
        if not self.tokens[member.name].done():
            for name in names:
                self.summary.left_out(name, "no time: its tokens were not made by the deadline", "skipped")
            return False
        try:
            encoded = self.tokens[member.name].result()
            self.clock.add(member, encoded)
        except Exception as error:
            self._failed(names, error)
            return False
        if not self.encoded:
            self.summary.phase("tokens")
        self.encoded[member.name] = encoded
        return True

    def _turn(self, member: Member, k: int) -> None:
        """One fold."""
        name, began = f"{member.name}/{member.folds[k].name}", time.monotonic()
        left, wanted = self.ends - began, self.clock.estimate(member.name)
        if wanted > left or left <= 0:
            self.summary.left_out(name, f"no time: about {wanted:.0f} s needed, {max(left, 0):.0f} s left", "skipped")
            return
        try:
            self.checks.wait(member.folds[k])
            predictions = self.workers.predict(member, k, self.encoded[member.name], self.ids, self.ends)
            if len(predictions.ids) < len(self.ids):
                self._cut_off(name, predictions)
                return
            self._add(member.name, predictions)
        except Exception as error:
            self._failed([name], error)
            return
        self.clock.measured(member.name, time.monotonic() - began)
        self.summary.used(name, time.monotonic() - began)

    def _failed(self, names: list[str], error: Exception) -> None:
        if self.strict:
            raise error
        if not isinstance(error, Fb3Error):
            say("".join(traceback.format_exception(error)))
        for name in names:
            self.summary.left_out(name, str(error) or type(error).__name__)

    def _add(self, run: str, predictions: Predictions) -> None:
        """The run's mean with this fold, the mean of the runs, and the file anew."""
        mean, count = self.means.get(run), self.counts[run]
        mean = predictions if mean is None else average([mean, predictions], [count, 1], run)
        whole = average([*(m for name, m in self.means.items() if name != run), mean], name="ensemble")
        self.standing.update(whole.ids, self._ordered(whole))
        self.means[run], self.counts[run] = mean, count + 1

    def _cut_off(self, name: str, predictions: Predictions) -> None:
        """A fold that the deadline stopped midway: better than the means where nothing else is there, else dropped."""
        reached = f"{len(predictions.ids)} of {len(self.ids)} essays reached at the deadline"
        if not self.means and len(predictions.ids):
            self.standing.update(predictions.ids, self._ordered(predictions))
            self.summary.partial = True
            reached += ", the others keep the training means"
        self.summary.left_out(name, reached, "cut off")

    def _ordered(self, predictions: Predictions) -> np.ndarray:
        return predictions.values[:, [predictions.columns.index(name) for name in self.standing.columns]]


class _Clock:
    """How long a fold will take, from the folds before it."""

    def __init__(self) -> None:
        self.flops: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def add(self, member: Member, encoded: Encoded) -> None:
        """A run, before its first fold."""
        folder, flops = member.path / ENCODER, 0.0
        for each, place in ((encoded, folder), (encoded.second, folder / SECOND)):
            if each:
                flops += float(forward_flops(read_json(place / "config.json"), each.lengths).sum())
        self.flops[member.name] = flops

    def measured(self, run: str, seconds: float) -> None:
        self.seconds[run] = seconds

    def estimate(self, run: str) -> float:
        """Seconds; 0 while nothing was measured."""
        if run in self.seconds:
            return self.seconds[run]
        slowest = max((seconds / self.flops[name] for name, seconds in self.seconds.items()), default=0.0)
        return _UNSURE * slowest * self.flops[run]
