"""Predictions for a fold's validation essays while it trains."""

import numpy as np
from accelerate.utils import gather_object

from fb3.data.folds import FoldSplit
from fb3.models.scorer import Scorer
from fb3.prediction.inference_loop import predict
from fb3.prediction.predictions import Predictions
from fb3.tasks.base import Task
from fb3.training.session import Session

_COLLAPSED = 0.05  # share of the truths' spread below which a model has learned only their mean


def predict_validation(session: Session, split: FoldSplit, task: Task, scorer: Scorer, name: str) -> Predictions:
    """Predictions for all validation essays, not clipped; each process predicts its share of them."""
    accelerator, rows = session.accelerator, split.valid_rows
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    part = predict(
        scorer,
        task,
        session.encoded,
        session.ids,
        rows=mine,
        precision=session.precision,
        token_budget=session.recipe.predict.token_budget,
        name=name,
        shown=accelerator.is_main_process and accelerator.num_processes == 1,
    )
    if accelerator.num_processes == 1:
        return part
    parts = gather_object([(mine, part)])
    order = np.argsort(np.concatenate([part_rows for part_rows, _ in parts]))
    return Predictions(
        np.concatenate([p.ids for _, p in parts])[order],
        np.concatenate([p.values for _, p in parts])[order],
        part.columns,
        part.name,
    )


def warn_of_collapse(session: Session, fold: int, values: np.ndarray, truth: np.ndarray) -> None:
    """Warns where predictions, (N, K), hardly differ between essays although the truths do."""
    if len(truth) > 1 and (values.std(0) < _COLLAPSED * truth.std(0)).all():
        session.log.event(
            "warning",
            f"warning: fold {fold} predicts nearly the same for every essay; it has learned the mean or collapsed: try "
            "a lower optimizer.encoder_rate, or more epochs",
            fold=fold,
            reason="predictions without spread",
        )
