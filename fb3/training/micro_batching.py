"""Batches that do not fit into memory: activations are recomputed, then the batch is split into micro-batches."""

import math

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.models.surgery import recompute_activations
from fb3.recipe import Recipe
from fb3.training.run_log import RunLog


class MicroBatching:
    """Into how many micro-batches a fold's batches are split, and whether activations are recomputed.

    Both only ever grow, and neither changes a result: an optimizer step still gets the gradients of the whole batch.

    Args:
        recipe: says whether activations may be recomputed, and whether the loss of a batch is the mean of its essays'
            losses; only then do the gradients of micro-batches add up to the batch's.
        scorer: the model, not yet prepared for several processes.
        fold: its number, for the log.
        name: the training, in messages.
        processes: how many train together.
        log: takes the events.
        whole_batches: whether the loss is one of whole batches, whatever the recipe's task.
    """

    def __init__(
        self,
        recipe: Recipe,
        scorer: Scorer,
        fold: int,
        name: str,
        processes: int,
        log: RunLog,
        whole_batches: bool = False,
    ) -> None:
        self.fold, self.name, self.processes, self.log = fold, name, processes, log
        self.count, self.recomputes = 1, recipe.model.gradient_checkpointing is True
        self._scorer, self._divisible = scorer, not (recipe.task.of_batches() or whole_batches)
        self._may_recompute = recipe.model.gradient_checkpointing == "auto"
        # Where one of several processes runs out of memory, the others already wait for its gradients: it cannot start
        # the step over, so activations are recomputed from the first step on.
        if self._may_recompute and processes > 1:
            self.recompute()

    def recompute(self) -> None:
        """Recomputes activations in the backward pass from now on, instead of keeping them."""
        if not self.recomputes:
            for tower in self._scorer.towers().values():
                recompute_activations(tower.encoder)
        self.recomputes = True

    def relieve(self, step: int, essays: int) -> None:
        """Takes less memory from now on: recomputes activations if it may, else doubles the micro-batches.

        Args:
            step: the optimizer step that ran out of memory, counted from 1.
            essays: size of its largest batch.

        Raises:
            Fb3Error: micro-batches are single essays already, or the loss or other processes forbid to split.
        """
        size = math.ceil(essays / self.count)
        where = f"{self.name}, step {step}: out of memory with {size} essays at a time"
        if self._may_recompute and not self.recomputes:
            self.recompute()
            self._report(step, size, f"{where}; from here on activations are recomputed, which takes a third more time")
            return
        mends = "a smaller data.max_length"
        if not self.recomputes:
            mends = f"model.gradient_checkpointing=true or {mends}"
        if self.count >= essays:
            raise Fb3Error(f"{where}; try {mends}")
        if not self._divisible:
            raise Fb3Error(f"{where}, and the loss needs whole batches; try a smaller train.batch_size, {mends}")
        if self.processes > 1:
            raise Fb3Error(f"{where} in one of {self.processes} processes; try a smaller train.batch_size, {mends}")
        self.count = min(2 * self.count, essays)
        size = math.ceil(essays / self.count)
        self._report(step, size, f"{where}; from here on {size} at a time, the same batch in {self.count} parts")

    def _report(self, step: int, size: int, line: str) -> None:
        more = {"essays": size, "parts": self.count, "recomputes": self.recomputes}
        self.log.event("out_of_memory", line, fold=self.fold, step=step, **more)
