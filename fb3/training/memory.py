"""Where memory does not hold a batch: activations recomputed, and the same sums of gradients part after part."""

import math
from typing import Literal

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.models.surgery import recompute_activations
from fb3.training.run_log import RunLog


class Parts:
    """In how many parts a fold's batches are computed, and whether their activations are recomputed.

    Args:
        fold: its number.
        scorer: the model.
        checkpointing: the recipe's model.gradient_checkpointing.
        divisible: whether the loss of a batch is the mean of its parts' losses.
        processes: that train together.
        log: takes the event.
    """

    def __init__(
        self,
        fold: int,
        scorer: Scorer,
        checkpointing: bool | Literal["auto"],
        divisible: bool,
        processes: int,
        log: RunLog,
    ) -> None:
        self.fold, self.divisible, self.processes, self.log = fold, divisible, processes, log
        self.number = 1
        self.recomputes, self._scorer, self._auto = checkpointing is True, scorer, checkpointing == "auto"
        if self._auto and processes > 1:  # where one runs out of memory, the others wait for its gradients
            self.recompute()

    def recompute(self) -> None:
        """Recomputes the activations from now on."""
        if not self.recomputes:
            for tower in self._scorer.towers().values():
                recompute_activations(tower.encoder)
        self.recomputes = True

    def relieve(self, step: int, essays: int) -> None:
        """Takes less memory from now on, after it ran out in `step` with batches of `essays`: recomputes activations
        where that is left open, else takes twice as many parts.

        Raises:
            Fb3Error: the parts are single essays, the loss is one of whole batches, or other processes wait.
        """
        size = math.ceil(essays / self.number)
        where = f"fold {self.fold}, step {step}: out of memory with {size} essays at a time"
        if self._auto and not self.recomputes:
            self.recompute()
            self._tell(step, size, f"{where}; from here on activations are recomputed, which takes a third more time")
            return
        mends = "a smaller data.max_length"
        if not self.recomputes:
            mends = f"model.gradient_checkpointing=true or {mends}"
        if self.number >= essays:
            raise Fb3Error(f"{where}; try {mends}")
        if not self.divisible:
            raise Fb3Error(f"{where}, and the loss is one of whole batches; try a smaller train.batch_size, {mends}")
        if self.processes > 1:
            raise Fb3Error(f"{where} in one of {self.processes} processes; try a smaller train.batch_size, {mends}")
        self.number = min(2 * self.number, essays)
        size = math.ceil(essays / self.number)
        self._tell(step, size, f"{where}; from here on {size} at a time, the same batch in {self.number} parts")

    def _tell(self, step: int, size: int, line: str) -> None:
        more = {"essays": size, "parts": self.number, "recomputes": self.recomputes}
        self.log.event("out_of_memory", line, fold=self.fold, step=step, **more)
