"""Slope and shift of blended predictions: a mean shrinks towards the middle, and a line can stretch it again."""

from collections.abc import Iterable
from typing import Any

import numpy as np

_LARGEST = 1e9  # numbers beyond it are no calibration, and might overflow


def fit_calibration(truth: np.ndarray, blended: np.ndarray) -> np.ndarray:
    """Least squares of the truths on blends, (N, K) each: slope and shift of each column, (2, K).

    A column whose slope would not be positive keeps slope 1 and shift 0.
    """
    x, y = blended - blended.mean(0), truth - truth.mean(0)
    products, squares = (x * y).sum(0), (x * x).sum(0)
    slope = np.where(products > 0, products / np.where(squares > 0, squares, 1.0), 1.0)
    return np.stack([slope, np.where(products > 0, truth.mean(0) - slope * blended.mean(0), 0.0)])


def calibrated(values: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Predictions (N, K) through slope and shift of each column, (2, K); not clipped."""
    return values * calibration[0] + calibration[1]


def is_calibration(found: Any, columns: Iterable[str]) -> bool:
    """Whether a JSON object holds a "slope" above 0 and a "shift" for each column, all finite numbers."""
    if not isinstance(found, dict) or found.keys() != {"slope", "shift"}:
        return False
    if not all(isinstance(each, dict) and each.keys() == set(columns) for each in found.values()):
        return False
    numbers = [number for each in found.values() for number in each.values()]
    finite = all(type(number) in (int, float) and abs(number) < _LARGEST for number in numbers)
    return finite and all(slope > 0 for slope in found["slope"].values())
