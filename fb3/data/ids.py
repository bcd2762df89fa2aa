"""Ids: each stands once in a file, and the same ones stand on both sides of a match."""

from collections import Counter
from collections.abc import Collection, Hashable
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error

_SHOWN = 5  # examples in a message


def check_ids(ids: pd.Series, path: Path) -> None:
    """Refuses a file without rows, empty ids and duplicate ids."""
    if ids.empty:
        raise Fb3Error(f"{path}: no row below the header")
    empty = np.flatnonzero(ids.str.strip() == "") + 1  # row 1 is the first below the header
    if len(empty):
        rows = empty[:_SHOWN].tolist()
        raise Fb3Error(f"{path}: {len(empty)} empty ids in column {ids.name}, first rows {rows}")
    check_unique(ids, path, f" in column {ids.name}")


def check_unique(ids: Collection[Hashable], source: object, place: str = "") -> None:
    """Refuses duplicate ids."""
    if twice := [identifier for identifier, count in Counter(ids).items() if count > 1]:
        raise Fb3Error(f"{source}: {len(twice)} duplicate ids{place}: {twice[:_SHOWN]}")


def match_ids(
    ids: Collection[Hashable],
    wanted: Collection[Hashable],
    source: object,
    wanted_source: object,
    mend: str = "",
    *,
    subset: bool = False,
) -> np.ndarray:
    """Finds the row of each wanted id, where both sides hold the same ids in any order.

    Args:
        ids: (N,), each once.
        wanted: (M,), each once; their order is the result's.
        source: the file or model that holds `ids`, for the message.
        wanted_source: the same for `wanted`.
        mend: end of the message, such as "; copy the run again".
        subset: `wanted` may be a part of `ids`.

    Returns:
        Positions in `ids`, (M,).

    Raises:
        Fb3Error: an id stands on one side only, or twice on one; gives counts and examples.
    """
    row_of, known = {identifier: row for row, identifier in enumerate(ids)}, set(wanted)
    foreign = [] if subset else [identifier for identifier in row_of if identifier not in known]
    missing = [identifier for identifier in wanted if identifier not in row_of]
    if foreign or missing:
        sides = ((missing, wanted_source),) if subset else ((foreign, source), (missing, wanted_source))
        counts = ", ".join(f"{len(only)} only in {where} {only[:_SHOWN]}" for only, where in sides)
        raise Fb3Error(f"{source} and {wanted_source} hold different ids: {counts}{mend}")
    check_unique(ids, source)
    check_unique(wanted, wanted_source)
    return np.array([row_of[identifier] for identifier in wanted], np.int64)
