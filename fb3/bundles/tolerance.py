"""How far two predictions of one essay may lie apart: rounding passes; another model, or rows that moved, do not."""

from dataclasses import dataclass

import numpy as np

from fb3.data.tables import read_numbers
from fb3.runs.run_folder import Member
from fb3.runs.scores import TRUTH
from fb3.system.devices import Precision
from fb3.system.file_names import OOF

# Largest difference of a score on FB3's scale of 1-5. Twice and more what was seen between chips and batch sizes on
# real essays (bf16 0.010).
TOLERANCE = {"fp32": 0.002, "fp16": 0.02, "bf16": 0.05}
_RANGE = 4.0  # from 1 to 5
_STD = 0.5  # below that of FB3's targets, 0.57 to 0.73, so that there the range alone decides
# Share of the predictions' spread. A model that has learned little predicts nearly the same for all, and shuffled rows
# differ by little; bf16 alone gives about 0.01 of the spread.
_OF_SPREAD = 0.25
_NOISE = 0.1  # share of the tolerance: below this root mean square nothing is refused


@dataclass(frozen=True)
class Tolerance:
    """largest: allowed difference of one score. noise: root mean square that is always allowed."""

    largest: float
    noise: float

    def exceeded(self, difference: np.ndarray, spread: float) -> bool:
        """Whether predictions differ by more than rounding explains.

        Args:
            difference: between two predictions of the same essays, (N, K).
            spread: standard deviation of the predictions over the essays, mean of the columns.
        """
        rms = float(np.sqrt((difference**2).mean()))
        return bool((np.abs(difference) > self.largest).any()) or rms > max(self.noise, _OF_SPREAD * spread)


def tolerance(member: Member, precision: Precision) -> Tolerance:
    """The tolerance of a precision on the scale of a run's targets."""
    scale = target_scale(member)
    largest = TOLERANCE[precision] * scale
    # Noise of a model that has learned little comes from its weights as they began, and does not grow with the range.
    return Tolerance(largest, _NOISE * TOLERANCE[precision] * min(1.0, scale))


def target_scale(member: Member) -> float:
    """How large a run's scores are beside FB3's: 1 for those from 1 to 5, 25 for those from 0 to 100.

    Range or spread of the targets decides, whichever is smaller: a range may be left open, such as ±1,000,000.
    """
    task, oof = member.recipe.task, member.path / OOF
    scale = (task.maximum - task.minimum) / _RANGE
    if not oof.is_file():
        return scale
    truths = [TRUTH + column for column in member.recipe.data.target_columns]
    spread = float(read_numbers(oof, member.recipe.data.id_column, truths)[truths].to_numpy().std(0).max())
    return min(scale, spread / _STD) if spread else scale
