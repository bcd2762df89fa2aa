"""The folds of a bundle, one after the other, under a deadline; the submission gets better with each."""

import time
import traceback
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from threading import TIMEOUT_MAX

import numpy as np

from fb3.data.tokens import Encoded
from fb3.ensembles.blend_forms import Averaging, averaged
from fb3.errors import Fb3Error
from fb3.prediction.backends.choose import tell_backends
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.prediction.member_inputs import member_flops, shares_vectors
from fb3.prediction.predictions import Predictions, aligned, average
from fb3.runs.run_folder import Member, in_turn
from fb3.submission.background import FoldChecks, Tokens
from fb3.submission.device_pool import DevicePool
from fb3.submission.given_predictions import Given
from fb3.submission.submission_file import SubmissionFile
from fb3.submission.summary import Summary
from fb3.system.devices import pick_devices
from fb3.system.progress import say

# Safety factor for a run without a timed fold: its FLOPs and another run's speed tell its time only roughly.
_UNTIMED = 1.5


class FoldQueue:
    """Predicts fold by fold, the runs in turn, so that each run has a say when time runs out.

    Args:
        checks: compares the folds' files with the manifest.
        members: the runs that can be used.
        ids: the essays' ids, (N,).
        tokens: the essays for each run, perhaps still in the making. A run's folds begin once its tokens are made;
            nothing waits for them beyond the deadline.
        submission: the file to improve.
        summary: records each fold's fate.
        averaging: the way from the runs' predictions to the submission's values.
        given: members without a model, by name; they are in the submission before the first fold is.
        ends: the deadline, by time.monotonic().
        strict: a fold that cannot be used is an error.
    """

    def __init__(
        self,
        checks: FoldChecks,
        members: list[Member],
        ids: np.ndarray,
        tokens: Tokens,
        submission: SubmissionFile,
        summary: Summary,
        averaging: Averaging,
        given: Mapping[str, Given],
        ends: float,
        strict: bool,
    ) -> None:
        self.checks, self.submission, self.summary = checks, submission, summary
        self.members, self.ids, self.tokens, self.averaging = members, ids, tokens, averaging
        self.ends, self.strict = ends, strict
        devices = [str(device) for device in pick_devices(broken=members[0].recipe.predict.broken_gpu)]
        tell_backends((member.recipe for member in members), devices[0], strict)
        self.pool = DevicePool(devices)
        say(f"{len(ids)} essays, {sum(len(m.folds) for m in members)} folds of {len(members)} runs, on {devices}")
        self.encoded: dict[str, Encoded | FeatureInputs] = {}
        self.times = FoldTimes()
        self.summary.flops = self.times.flops
        self.weights = {member.name: member.weights for member in members}
        self.weights |= {name: each.weights for name, each in given.items()}
        self.means = {name: each.predictions for name, each in given.items()}
        if self.means:
            self._write(self._blended([*self.means.values()], self._weights(self.means)))
        self.counts = {member.name: 0 for member in members}

    def run(self) -> None:
        """Predicts all folds that fit into the time; an Fb3Error where no fold could be used."""
        left = in_turn(self.members)
        try:
            while left:
                member, k = left.pop(self._first_ready(left))
                if self._has_tokens(member):
                    self._predict(member, k)
                else:
                    left = [(other, fold) for other, fold in left if other is not member]
        finally:
            self.pool.close()
            for future in self.tokens.values():
                future.cancel()
        if not self.means and not self.summary.partial:
            why = self.summary.folds[0]["reason"] if self.summary.folds else "there is none"
            raise Fb3Error(f"no fold could be used ({why}); {self.submission.out} holds the training means")

    def _first_ready(self, left: list[tuple[Member, int]]) -> int:
        """Position of the first fold whose tokens are made; 0 where none are by the deadline."""
        futures = {self.tokens[member.name] for member, _ in left}
        if not any(future.done() for future in futures):
            wait(futures, min(max(0.0, self.ends - time.monotonic()), TIMEOUT_MAX), FIRST_COMPLETED)
        return next((at for at, (member, _) in enumerate(left) if self.tokens[member.name].done()), 0)

    def _has_tokens(self, member: Member) -> bool:
        """Takes over a run's tokens. All folds of a run without tokens are left out."""
        if member.name in self.encoded:
            return True
        names = [f"{member.name}/{fold.name}" for fold in member.folds]
        if not self.tokens[member.name].done():
            for name in names:
                self.summary.left_out(name, "no time: its tokens were not made by the deadline", "skipped")
            return False
        try:
            encoded = self.tokens[member.name].result()
            self.times.add(member, encoded)
        except Exception as error:
            self._failed(names, error)
            return False
        if not self.encoded:
            self.summary.phase("tokens")
        self.encoded[member.name] = encoded
        return True

    def _predict(self, member: Member, k: int) -> None:
        """Predicts one fold, where its estimated time is left, and puts it into the submission."""
        name, began = f"{member.name}/{member.folds[k].name}", time.monotonic()
        left, needed = self.ends - began, self.times.estimate(member.name)
        if needed > left or left <= 0:
            self.summary.left_out(name, f"no time: about {needed:.0f} s needed, {max(left, 0):.0f} s left", "skipped")
            return
        try:
            self.checks.wait(member.folds[k])
            predictions = self.pool.predict(member, k, self.encoded[member.name], self.ids, self.ends)
            if len(predictions.ids) < len(self.ids):
                self._cut_off(name, predictions)
                return
            self._add(member.name, predictions)
        except Exception as error:
            self._failed([name], error)
            return
        self.times.timed(member.name, time.monotonic() - began)
        self.summary.used(name, time.monotonic() - began)

    def _failed(self, names: list[str], error: Exception) -> None:
        if self.strict:
            raise error
        if not isinstance(error, Fb3Error):
            say("".join(traceback.format_exception(error)))
        for name in names:
            self.summary.left_out(name, str(error) or type(error).__name__)

    def _add(self, run: str, predictions: Predictions) -> None:
        """Averages the fold into its run's mean, and the runs' means into the submission."""
        mean, count = self.means.get(run), self.counts[run]
        mean = predictions if mean is None else average([mean, predictions], [count, 1], run)
        means = {**{name: m for name, m in self.means.items() if name != run}, run: mean}
        self._write(self._blended([*means.values()], self._weights(means)))
        self.means[run], self.counts[run] = mean, count + 1

    def _blended(self, means: list[Predictions], weights: np.ndarray) -> Predictions:
        """The runs' means, averaged in the ensemble's form, and calibrated where it is."""
        first = means[0]
        values = averaged(self.averaging, np.stack([aligned(each, first) for each in means]), weights)
        return Predictions(first.ids, values.astype(np.float32), first.columns, "ensemble")

    def _weights(self, means: dict[str, Predictions]) -> np.ndarray:
        """Weights (R, K) of the runs that have a mean; `averaged` brings them to a sum of 1.

        A column in which none of these runs has weight takes their plain mean until one arrives that has.
        """
        columns = next(iter(means.values())).columns
        if any(self.weights[run] is None for run in means):
            return np.ones((len(means), len(columns)))
        weights = np.array([[self.weights[run][column] for column in columns] for run in means])
        return np.where(weights.sum(0) > 0, weights, 1.0)

    def _cut_off(self, name: str, predictions: Predictions) -> None:
        """Drops a fold that the deadline stopped midway, unless nothing better than the training means is there."""
        reached = f"{len(predictions.ids)} of {len(self.ids)} essays reached at the deadline"
        if not self.means and len(predictions.ids):
            self._write(predictions)
            self.summary.partial = True
            reached += ", the others keep the training means"
        self.summary.left_out(name, reached, "cut off")

    def _write(self, predictions: Predictions) -> None:
        self.submission.update(predictions.ids, predictions.values)


class FoldTimes:
    """Estimates how long a fold of each run takes.

    By the run's name, flops: a fold's FLOPs; seconds: the time of its last fold; speeds: seconds of one FLOP; shared:
    runs whose first fold computes the vectors of all.
    """

    def __init__(self) -> None:
        self.flops: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.speeds: dict[str, float] = {}
        self.shared: set[str] = set()

    def add(self, member: Member, encoded: Encoded | FeatureInputs) -> None:
        """Counts a run's FLOPs, before its first fold."""
        self.flops[member.name] = member_flops(member, encoded)
        if shares_vectors(encoded):
            self.shared.add(member.name)

    def timed(self, run: str, seconds: float) -> None:
        """Records a fold's time. Where folds share their vectors, the first says nothing about the others."""
        if self.flops[run] and not (run in self.shared and run in self.seconds):
            self.speeds[run] = seconds / self.flops[run]
        self.seconds[run] = 0.0 if run in self.shared and run not in self.seconds else seconds

    def estimate(self, run: str) -> float:
        """Seconds of the run's next fold; 0 while no fold of any run was timed."""
        if run in self.seconds:
            return self.seconds[run]
        slowest = max(self.speeds.values(), default=0.0)
        return _UNTIMED * slowest * self.flops[run]
