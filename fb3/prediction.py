"""The one inference loop, for out-of-fold and for test predictions."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from fb3.essays import Encoded, collate, inference_batches
from fb3.models import Scorer
from fb3.progress import progress
from fb3.runtime import Precision
from fb3.tasks import Task

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOKEN_BUDGET = {"cpu": 4096}  # measured: larger batches fall out of a CPU's cache
_TOKEN_BUDGET_GPU = 16384


@dataclass(frozen=True)
class Predictions:
    """Predictions that travel with their ids.

    ids: (N,) texts. values: (N, K) float32, not clipped. columns: the K targets. name: of the model, for messages.
    """

    ids: np.ndarray
    values: np.ndarray
    columns: tuple[str, ...]
    name: str = ""

    def frame(self, id_column: str) -> pd.DataFrame:
        """Ids first, then one column a target."""
        table = pd.DataFrame(self.values, columns=list(self.columns))
        table.insert(0, id_column, self.ids)
        return table


def lower_weights(scorer: Scorer, precision: Precision) -> Scorer:
    """Casts the encoder's weights for inference, in place; pooling and head stay in float32."""
    scorer.encoder.to(_DTYPE[precision])
    return scorer


def _autocast(scorer: Scorer, device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast, except where a CPU's weights are low already: there the plain low-precision pass is the faster one."""
    weights = next(scorer.encoder.parameters()).dtype
    if precision == "fp32" or (device.type == "cpu" and weights != torch.float32):
        return nullcontext()
    return torch.autocast(device.type, _DTYPE[precision])


@torch.inference_mode()
def predict(
    scorer: Scorer,
    task: Task,
    encoded: Encoded,
    ids: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    name: str = "",
    shown: bool = True,
) -> Predictions:
    """Predicts essays, longest first, and gives them back in the order of `rows`.

    Args:
        scorer: on the device that computes; left in the mode (train or eval) in which it came.
        task: turns outputs into predictions.
        encoded: all essays' tokens.
        ids: all essays' ids, (N,).
        rows: which essays, none: all.
        precision: of the encoder.
        token_budget: tokens a batch, padding included; none: by device.
        name: of the result, and of the progress bar.
        shown: False hides the progress.

    Returns:
        Unclipped predictions of `rows`.
    """
    rows = np.arange(len(encoded.rows)) if rows is None else np.asarray(rows)
    device = next(scorer.parameters()).device
    budget = token_budget or _TOKEN_BUDGET.get(device.type, _TOKEN_BUDGET_GPU)
    values = np.full((len(encoded.rows), len(task.columns)), np.nan, np.float32)
    was_training = scorer.training
    scorer.eval()
    with progress(name or "predict", len(rows), shown) as advance, _autocast(scorer, device, precision):
        for batch_rows in inference_batches(encoded.lengths, rows, budget):
            batch = {key: value.to(device) for key, value in collate(encoded, batch_rows).items()}
            values[batch_rows] = task.predict(scorer, batch).float().cpu().numpy()  # (B, K)
            advance(len(batch_rows))
    scorer.train(was_training)
    return Predictions(np.asarray(ids)[rows], values[rows], task.columns, name)
