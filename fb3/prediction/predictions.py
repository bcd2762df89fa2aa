"""Predictions, which carry their ids, and their average."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fb3.data.ids import match_ids
from fb3.errors import Fb3Error


@dataclass(frozen=True)
class Predictions:
    """Predictions with their ids, on whose order nothing relies.

    Attributes:
        ids: (N,) texts.
        values: (N, K) float32, not clipped.
        columns: the K targets.
        name: the model's, for messages.
    """

    ids: np.ndarray
    values: np.ndarray
    columns: tuple[str, ...]
    name: str = ""

    def frame(self, id_column: str) -> pd.DataFrame:
        """The predictions as a table: the ids, then a column for each target."""
        table = pd.DataFrame(self.values, columns=list(self.columns))
        table.insert(0, id_column, self.ids)
        return table


def average(members: Sequence[Predictions], weights: Sequence[float] | None = None, name: str = "") -> Predictions:
    """The weighted mean of predictions, aligned by id, in the order of the first member.

    Weights are one for each member, not negative, not all zero; None weighs all alike. An Fb3Error where there is no
    member, ids or columns differ, or the weights do not fit.
    """
    if not members:
        raise Fb3Error("nothing to average: no predictions")
    weights = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(members),) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise Fb3Error(
            f"{len(members)} predictions want as many weights, not negative, not all 0; got {weights.tolist()}"
        )
    first = members[0]
    total = np.zeros(first.values.shape, np.float64)
    for member, weight in zip(members, weights / weights.sum(), strict=True):
        total += weight * aligned(member, first)
    return Predictions(first.ids, total.astype(np.float32), first.columns, name)


def aligned(member: Predictions, first: Predictions) -> np.ndarray:
    """A member's values (N, K) in the order of the first one's ids; an Fb3Error where ids or columns differ."""
    if member.columns != first.columns:
        raise Fb3Error(f"{member.name} predicts {member.columns}, {first.name} predicts {first.columns}")
    return member.values[match_ids(member.ids, first.ids, member.name, first.name)]
