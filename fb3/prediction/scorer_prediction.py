"""A scorer's predictions on one device: in low precision first, and again in fp32 where that fails."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error, one_line
from fb3.models.dry_run import keeps_fp32
from fb3.models.kernels.int8_linear import Scales
from fb3.models.scorer import Scorer
from fb3.prediction.backends.choose import pick_backend, use_backend
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.prediction.predictions import Predictions
from fb3.recipe.prediction import PredictSettings
from fb3.system.devices import Precision, emulates_bf16, pick_precision
from fb3.system.progress import say
from fb3.tasks.base import Task


@dataclass(frozen=True)
class How:
    """How a fold predicts.

    name: the run's and the fold's, for messages. device: such as cpu. settings: the recipe's for inference. until,
    shown: see `predict`. precision: the encoder's; none: the recipe's for inference on this device.
    """

    name: str
    device: str
    settings: PredictSettings
    until: float | None = None
    precision: Precision | None = None
    shown: bool = True

    def wanted(self) -> Precision:
        """The precision to try first."""
        return self.precision or _precision(self.settings.precision, torch.device(self.device), self.name)


def predict_scorer(
    load: Callable[[], tuple[Scorer, Task]],
    encoded: Encoded,
    ids: np.ndarray,
    rows: np.ndarray,
    how: How,
    scales: Callable[[], Scales | None] = lambda: None,
) -> Predictions:
    """Predicts `rows` of the essays. Those that fail in low precision, or get NaN, are predicted in fp32.

    Args:
        load: gives the scorer, on the CPU and in float32, and its task; asked again for each attempt.
        encoded, ids, rows: see `predict`.
        how: device, precision, deadline.
        scales: gives the int8 scales, if the scorer has some.

    Raises:
        Fb3Error: it predicts NaN in fp32 too.
    """
    place, name = torch.device(how.device), how.name
    position = {identifier: row for row, identifier in enumerate(ids)}
    values, left = None, rows
    backend, _ = pick_backend(how.settings.backend, place)
    first = (how.wanted(), backend, None if how.precision or backend != "torch" else scales())
    attempts, exact = [first], ("fp32", "torch", None)
    if first != exact:
        attempts.append(exact)
    for lowered, backend, of_int8 in attempts:
        scorer, task = load()
        scorer = scorer.to(place)
        if lowered == "fp16" and any(keeps_fp32(tower.encoder) for tower in scorer.towers().values()):
            say(f"{name}: {type(scorer.encoder).__name__} is not made for fp16, whose range it exceeds; taking fp32")
            lowered = "fp32"
        try:
            by_backend = use_backend(scorer, backend, lowered, name)
            part = predict(
                scorer if by_backend else lower_weights(scorer, lowered, of_int8),
                task,
                encoded,
                ids,
                rows=left,
                precision="fp32" if by_backend else lowered,  # with a backend, torch computes only pooling and head
                token_budget=how.settings.token_budget,
                until=how.until,
                name=name,
                shown=how.shown,
            )
        except Exception as error:
            if isinstance(error, Fb3Error) or (lowered, backend, of_int8) == exact:
                raise
            say(f"{name}: {lowered} fails ({one_line(repr(error))}); again in fp32")
            continue
        if values is None:
            values = np.full((len(ids), part.values.shape[1]), np.nan, np.float32)
        predicted = np.array([position[identifier] for identifier in part.ids], np.int64)
        values[predicted] = part.values
        left = predicted[~np.isfinite(part.values).all(1)]
        if not len(left):
            reached = rows[np.isfinite(values[rows]).all(1)]
            return Predictions(ids[reached], values[reached], part.columns, name)
        say(f"{name}: {len(left)} essays got no number in {lowered}, first {ids[left[0]]}")
    raise Fb3Error(f"{name}: predicts NaN even in fp32; leave this fold out of the bundle")


def _precision(wish: str, device: torch.device, name: str) -> Precision:
    if wish == "fp16" and device.type == "cpu":
        say(f"{name}: predict.precision=fp16 is for GPUs; taking what is fast on this CPU")
        wish = "auto"
    if wish == "bf16" and emulates_bf16(device):
        say(f"{name}: predict.precision=bf16, but {device} has no bf16 and emulates it slowly; taking fp16")
        wish = "auto"
    return pick_precision(wish, device, "predict.precision")
