"""How far two predictions of one essay may differ: rounding passes; another model or shuffled rows do not."""

from dataclasses import dataclass

import numpy as np

from fb3.runs.run_folder import Member
from fb3.runs.scores import read_out_of_fold
from fb3.system.devices import Precision
from fb3.system.file_names import OOF
from fb3.targets.build import target_of
from fb3.targets.target import Probabilities

# Largest difference of a score between 1 and 5: at least twice what different chips and batch sizes gave on real essays
# (0.010 in bf16).
TOLERANCE = {"fp32": 0.002, "fp16": 0.02, "bf16": 0.05}
_RANGE = 4.0  # from 1 to 5
_STD = 0.5  # smaller than the targets' in FB3, 0.57 to 0.73, so that the range alone decides there
# Largest root mean square, as a share of the predictions' spread. A model that has learned little predicts nearly the
# same for every essay, so that shuffled rows differ by little; bf16 alone gives about 0.01 of the spread.
_SPREAD_SHARE = 0.25
_NOISE_SHARE = 0.1  # share of the tolerance; a smaller root mean square always passes
_VARIANCE = 1 / 16  # variance of a class's truths where one row in fifteen has it; a rarer one is held to less noise


@dataclass(frozen=True)
class Tolerance:
    """Limits on the differences between two predictions."""

    largest: float  # allowed difference of one score
    noise: float  # root mean square that is always allowed

    def exceeded(self, difference: np.ndarray, spread: float) -> bool:
        """Whether predictions differ by more than rounding explains.

        Args:
            difference: between two predictions of the same essays, (N, K).
            spread: standard deviation of the predictions over the essays, mean of the columns.
        """
        rms = float(np.sqrt((difference**2).mean()))
        return bool((np.abs(difference) > self.largest).any()) or rms > max(self.noise, _SPREAD_SHARE * spread)


def least_precision(member: Member) -> Precision:
    """The precision that a run's predictions have at most. An estimator's vectors are rounded to fp16, and a last digit
    may send an essay down another branch of a tree.
    """
    features = member.recipe.estimator.features if member.recipe.estimator else ()
    return "fp16" if any(feature.kind == "embeddings" for feature in features) else "fp32"


def tolerance(member: Member, precision: Precision) -> Tolerance:
    """The tolerance for a precision, on the scale of a run's targets."""
    scale = target_scale(member)
    largest, noise = TOLERANCE[precision] * scale, min(1.0, scale)
    # A model that has learned little predicts from its initial weights: its noise does not grow with the range. A
    # logit's rounding moves a probability p by p(1 - p), which is the variance of its truths: little for rare classes.
    target = target_of(member.recipe)
    if isinstance(target, Probabilities) and (member.path / OOF).is_file():
        truths = read_out_of_fold(member.path, member.recipe).truth
        noise *= min(1.0, float(truths.var(0).mean()) / _VARIANCE)
    return Tolerance(largest, _NOISE_SHARE * TOLERANCE[precision] * noise)


def target_scale(member: Member) -> float:
    """How large a run's scores are compared to FB3's: 1 for scores from 1 to 5, 25 for scores from 0 to 100.

    The targets' range or their spread decides, whichever is smaller: a range may be left open, such as ±1,000,000. The
    predictions' spread counts where it is larger, as of a model that has not learned yet how small its targets are.
    """
    scale = target_of(member.recipe).width / _RANGE
    if not (member.path / OOF).is_file():
        return scale
    oof = read_out_of_fold(member.path, member.recipe)
    spread = float(max(values.std(0).max() for values in (oof.truth, oof.predicted)))
    return min(scale, spread / _STD) if spread else scale
