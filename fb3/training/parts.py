"""A batch in parts, where memory does not hold it whole: the same sums of gradients, each part after the other."""

import math

from fb3.errors import Fb3Error
from fb3.training.log import RunLog

_MENDS = "model.gradient_checkpointing=true or a smaller data.max_length"


class Parts:
    """In how many parts a fold's batches are computed.

    Args:
        fold: its number.
        divisible: whether the loss of a batch is the mean of its parts' losses.
        processes: that train together.
        log: takes the event.
    """

    def __init__(self, fold: int, divisible: bool, processes: int, log: RunLog) -> None:
        self.fold, self.divisible, self.processes, self.log = fold, divisible, processes, log
        self.number = 1

    def halve(self, step: int, essays: int) -> None:
        """Twice as many parts from now on, after memory ran out in `step` with batches of `essays`.

        Raises:
            Fb3Error: the parts are single essays, the loss is one of whole batches, or other processes wait.
        """
        where = f"fold {self.fold}, step {step}: out of memory with {math.ceil(essays / self.number)} essays at a time"
        if self.number >= essays:
            raise Fb3Error(f"{where}; try {_MENDS}")
        if not self.divisible:
            raise Fb3Error(f"{where}, and the loss is one of whole batches; try a smaller train.batch_size, {_MENDS}")
        if self.processes > 1:  # the others wait for this one's gradients
            raise Fb3Error(f"{where} in one of {self.processes} processes; try a smaller train.batch_size, {_MENDS}")
        self.number = min(2 * self.number, essays)
        size = math.ceil(essays / self.number)
        self.log.event(
            "out_of_memory",
            f"{where}; from here on {size} at a time, the same batch in {self.number} parts",
            fold=self.fold,
            step=step,
            essays=size,
            parts=self.number,
        )
