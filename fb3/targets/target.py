"""Targets: their columns read and checked, predictions scored, and turned into the cells that a submission holds.

Nothing here needs torch, because the first submission must stand within a second.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings
from fb3.recipe.metric import OwnMetricSettings
from fb3.recipe.task import BaseTaskSettings, ClassificationSettings, ScaleSettings
from fb3.targets.decisions import Decision, decide
from fb3.targets.metrics import Metric, Score, metric_of

_SURE = 1e-7  # distance of a probability from 0 and 1: the log loss of a wrong 0 would be infinite


class Target(ABC):
    """The target that columns and a task give, with K outputs a row, scored by a metric.

    labels: the columns of train.csv that hold it. columns: its outputs, which name the columns of oof.csv. width: the
    distance from the lowest value to the highest one, which tolerances grow with. numeric: whether its cells are
    numbers. exclusive: whether the outputs are classes of which one is true. decision: how averaged predictions become
    the submission's cells.
    """

    numeric = True
    exclusive = False
    width = 1.0

    def __init__(self, data: DataSettings, task: BaseTaskSettings, metric: str | OwnMetricSettings = "mcrmse") -> None:
        self.id_column, self.labels, self.columns = data.id_column, data.target_columns, data.target_columns
        self._metric = metric
        self.decision = Decision("none")

    @property
    def metric(self) -> Metric:
        """The competition's metric."""
        return metric_of(self._metric)

    def truths(self, essays: pd.DataFrame) -> np.ndarray:
        """The outputs that would be right, (N, K) float32, for a table of `read_essays`."""
        return essays[list(self.labels)].to_numpy(np.float32)

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> Score:
        """The metric of predictions (N, K), which are clipped first, against truths (N, K)."""
        return self.metric.score(truth, self.clip(predicted), self.columns, self.exclusive)

    @abstractmethod
    def check(self, essays: pd.DataFrame, path: Path) -> None:
        """Refuses truths that the target cannot hold; the error names the file, the row and the mend."""

    @abstractmethod
    def clip(self, values: np.ndarray) -> np.ndarray:
        """Averaged predictions (N, K) brought into the range that a submission may hold."""

    @abstractmethod
    def middle(self) -> np.ndarray:
        """A guess without any knowledge, (K,)."""

    def forms(self) -> list[tuple[str, ...]]:
        """The columns that a submission may have beside the ids, the usual ones first."""
        return [self.labels]

    def render(self, values: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        """Predictions (N, K) as a submission holds them, in the order of `columns`, which are one of `forms`.

        Decided values are whole numbers, others have a fraction.
        """
        cells = self.clip(values).astype(np.float32)
        if self.decision.kind != "none" and np.isfinite(cells).all():
            cells = decide(self.decision, cells).astype(int)
        return pd.DataFrame(cells, columns=list(self.columns))[list(columns)]

    def values(self, cells: pd.DataFrame) -> np.ndarray:
        """A submission's cells as numbers, (N, columns), which tell whether two rows say the same."""
        return cells.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)

    def check_cells(self, submission: pd.DataFrame) -> None:
        """Refuses cells that the competition would refuse; the ids are the first column, each other cell is text or a
        number. An Fb3Error names the row.
        """
        values = self.values(submission.iloc[:, 1:]).astype(np.float32)
        bad = ~np.isfinite(values) | ((values != self.clip(values)) & ~self._decided(values))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise Fb3Error(
                f"the submission has {bad.sum()} values that are not {self._allowed()}, first "
                f"{submission.iloc[row, column + 1]} at {submission.columns[0]} {submission.iloc[row, 0]}, column "
                f"{submission.columns[column + 1]}"
            )

    def _decided(self, values: np.ndarray) -> np.ndarray:
        """Tells the values (N, K) that a decision gives, although the range is open there."""
        return np.zeros(values.shape, bool)

    @abstractmethod
    def _allowed(self) -> str:
        """The range in words, which ends "values that are not ..."."""

    def _refuse(self, bad: np.ndarray, essays: pd.DataFrame, path: Path, what: str, mend: str) -> None:
        """Raises the error for the first bad cell, (N, labels), if there is one."""
        if bad.any():
            row, column = np.argwhere(bad)[0]
            cell = essays[self.labels[column]].iloc[row]
            raise Fb3Error(
                f"{path}: {bad.sum()} {what}, first {cell} in row {row + 1} ({self.id_column} "
                f"{essays[self.id_column].iloc[row]}), column {self.labels[column]}; {mend}"
            )


class Scores(Target):
    """Numbers on a scale: regression, binned, ordinal."""

    def __init__(self, data: DataSettings, task: ScaleSettings, metric: str | OwnMetricSettings = "mcrmse") -> None:
        super().__init__(data, task, metric)
        self.minimum = -np.inf if task.minimum is None else task.minimum
        self.maximum = np.inf if task.maximum is None else task.maximum
        self.width = self.maximum - self.minimum

    def check(self, essays: pd.DataFrame, path: Path) -> None:
        scores = self.truths(essays)
        low, high = scores.min(), scores.max()
        mend = f"they go from {low} to {high}: give the competition's scale, such as "
        mend += f"task.minimum={np.floor(low):.0f} task.maximum={np.ceil(high):.0f}, or mend the file"
        bad = (scores < self.minimum) | (scores > self.maximum)
        self._refuse(bad, essays, path, f"scores outside {self.minimum}-{self.maximum}", mend)

    def clip(self, values: np.ndarray) -> np.ndarray:
        return np.clip(values, np.float32(self.minimum), np.float32(self.maximum))

    def middle(self) -> np.ndarray:
        ends = [end for end in (self.minimum, self.maximum) if np.isfinite(end)]
        return np.full(len(self.columns), np.mean(ends) if ends else 0.0)

    def _allowed(self) -> str:
        return f"between {self.minimum} and {self.maximum}"


class Probabilities(Target):
    """Labels that are true or not, each by itself: a probability a column."""

    def check(self, essays: pd.DataFrame, path: Path) -> None:
        truths = self.truths(essays)
        mend = "a label is 0 or 1, or a share between them: mend the file, or take task.kind=regression"
        self._refuse((truths < 0) | (truths > 1), essays, path, "labels outside 0-1", mend)

    def clip(self, values: np.ndarray) -> np.ndarray:
        return np.clip(values, np.float32(_SURE), np.float32(1 - _SURE))

    def middle(self) -> np.ndarray:
        return np.full(len(self.columns), 0.5)

    def _decided(self, values: np.ndarray) -> np.ndarray:
        return (values == np.rint(values)) & (self.decision.kind != "none")

    def _allowed(self) -> str:
        return "probabilities above 0 and below 1"


class Classes(Probabilities):
    """A label a row, one of several classes: a probability a class, or the most likely class itself."""

    numeric = False
    exclusive = True

    def __init__(
        self, data: DataSettings, task: ClassificationSettings, metric: str | OwnMetricSettings = "mcrmse"
    ) -> None:
        super().__init__(data, task, metric)
        self.columns = task.classes or ()

    def check(self, essays: pd.DataFrame, path: Path) -> None:
        labels = essays[list(self.labels)]
        mend = "give each row its label"
        self._refuse((labels == "").to_numpy(), essays, path, "labels are empty", mend)
        if self.columns:
            known = f"the classes are {list(self.columns)}: mend the file, or name all classes in task.classes"
            self._refuse(~labels.isin(self.columns).to_numpy(), essays, path, "labels are of no known class", known)

    def truths(self, essays: pd.DataFrame) -> np.ndarray:
        labels = essays[self.labels[0]].to_numpy(object)
        return (labels[:, None] == np.array(self.columns, object)).astype(np.float32)

    def middle(self) -> np.ndarray:
        return np.full(len(self.columns), 1 / len(self.columns))

    def forms(self) -> list[tuple[str, ...]]:
        of_classes = [self.labels, self.columns]
        return of_classes if self.metric.needs == "decisions" else of_classes[::-1]

    def render(self, values: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        if tuple(columns) != self.labels:
            return pd.DataFrame(self.clip(values).astype(np.float32), columns=list(self.columns))[list(columns)]
        if not np.isfinite(values).all():
            raise Fb3Error(f"{(~np.isfinite(values)).any(1).sum()} rows have no probability that is a number")
        decided = decide(self.decision, values) if self.decision.kind != "none" else values
        return pd.DataFrame({self.labels[0]: np.array(self.columns, object)[decided.argmax(1)]})

    def values(self, cells: pd.DataFrame) -> np.ndarray:
        return self.truths(cells) if tuple(cells.columns) == self.labels else super().values(cells)

    def check_cells(self, submission: pd.DataFrame) -> None:
        if tuple(submission.columns[1:]) != self.labels:
            super().check_cells(submission)
            return
        bad = ~submission[list(self.labels)].isin(self.columns).to_numpy()
        self._refuse(bad, submission, Path("the submission"), "cells are no class", f"there are {list(self.columns)}")
