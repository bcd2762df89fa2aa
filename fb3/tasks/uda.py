"""UDA: outputs for essays without scores and for augmented copies should agree (Xie et al. 2020, arXiv:1904.12848).

Cost: two forward passes of the unlabelled batch a step and one backward through the copies.
"""

from collections import deque
from collections.abc import Mapping
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fb3.data.batches import Batch, collate, on_device, training_batches
from fb3.data.tokens import Encoded
from fb3.recipe.task import UdaSettings
from fb3.tasks.base import Model, StepOutput, Task, Wrapper, with_term

_REMEMBERED = 256  # batches of token ids, some megabytes


class UDA(Wrapper):
    """Adds the distance between the outputs for unlabelled essays and for augmented copies to a task's loss.

    The outputs for the plain essays are targets, like labels: they get no gradient, and stay the same where a trick
    computes the loss of the batch again on weights that it moved.

    Args:
        task: the task, whose predictions and scores stay as they are.
        settings: weight and batch_size.
        plain: essays without scores.
        changed: augmented copies of the same essays.
        seed: seed of their order, a new one in each cycle over all of them.
        process, processes: number of this process and their count; each draws its share of a batch.
    """

    def __init__(
        self,
        task: Task,
        settings: UdaSettings,
        plain: Encoded,
        changed: Encoded,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(task)
        self.weight = settings.weight
        self._plain, self._changed = plain, changed
        rows, size = np.arange(len(plain.rows)), settings.batch_size
        self._batches = chain.from_iterable(
            training_batches(plain.lengths, rows, size, seed, cycle) for cycle in count()
        )
        self._count = 0  # batches drawn so far
        self._share = slice(process, None, processes)
        # Recent labelled batches and the unlabelled batch drawn for each: a repeated pass must get the same one.
        self._drawn: deque[tuple[Mapping[str, Tensor], Batch, Tensor]] = deque(maxlen=_REMEMBERED)

    def loss(self, model: Model, batch: Mapping[str, Tensor]) -> StepOutput:
        out = self.task.loss(model, batch)
        if not any(seen is batch for seen, _, _ in self._drawn):
            self._drawn.append((batch, *self._draw(model, batch["input_ids"].device)))
        changed, wanted = next((changed, wanted) for seen, changed, wanted in self._drawn if seen is batch)
        apart = self.task.distance(model(changed).scores, wanted)
        return StepOutput(out.loss + self.weight * apart, with_term(out, "uda", apart))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self._count, "changed": self._changed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._count = state["count"]
        for _ in range(self._count):
            next(self._batches)
        self._changed.load_state_dict(state["changed"])

    @torch.no_grad()
    def _draw(self, model: Model, device: torch.device) -> tuple[Batch, Tensor]:
        """The next batch of copies, and the outputs (U, outputs) for the plain essays.

        A process that gets no essay of a small last batch takes the first one: all processes must take part in a pass.
        """
        rows, self._count = next(self._batches), self._count + 1
        mine = rows[self._share]
        mine = mine if len(mine) else rows[:1]
        plain, changed = (on_device(collate(encoded, mine), device) for encoded in (self._plain, self._changed))
        return changed, model(plain).scores
