#!/usr/bin/env python3
"""Which of two runs scores better, and how sure that is: from their oof.csv, over the essays that both have.

    python benchmarks/compare.py RUN_A RUN_B [--samples 2000] [--seed 0]

The difference is B's MCRMSE less A's: below 0, B is better. Its standard error and its interval are those of a
bootstrap over essays: both runs are scored on the same draws. Seeds and splits differ by more than essays may say: give
two runs of the same split, and more than one seed.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.scores import TRUTH
from fb3.system.file_names import OOF, RECIPE


def errors_of(run: Path, columns: list[str], identifier: str) -> pd.DataFrame:
    """Squared errors, (N, K), by id."""
    names = [TRUTH + column for column in columns]
    table = read_numbers(run / OOF, identifier, [*names, *columns]).set_index(identifier)
    return pd.DataFrame((table[names].to_numpy() - table[columns].to_numpy()) ** 2, table.index, columns)


def bootstrap(one: np.ndarray, other: np.ndarray, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of the scores on draws of essays, (S,), and of each column's, (S, K); from squared errors (N, K)."""
    rng, size = np.random.default_rng(seed), len(one)
    columns = np.empty((samples, one.shape[1]))
    for sample in range(samples):
        drawn = rng.integers(0, size, size)
        first, second = (np.sqrt(errors[drawn].mean(0)) for errors in (one, other))
        columns[sample] = second - first
    return columns.mean(1), columns


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = load_recipe(arguments.runs[0] / RECIPE).data
    columns = list(data.target_columns)
    one, other = (errors_of(run, columns, data.id_column) for run in arguments.runs)
    ids = one.index.intersection(other.index)
    if not len(ids):
        raise SystemExit("no essay is in both")
    one, other = one.loc[ids].to_numpy(), other.loc[ids].to_numpy()
    found, each = bootstrap(one, other, arguments.samples, arguments.seed)
    scores = [np.sqrt(errors.mean(0)) for errors in (one, other)]
    print(f"{len(ids)} essays in both; {arguments.samples} draws of as many, seed {arguments.seed}")
    print(f"{'':<16}{'A':>9}{'B':>9}{'B - A':>9}{'error':>9}   95 % of the draws")
    rows = [("MCRMSE", *(score.mean() for score in scores), found)]
    rows += [(name, scores[0][k], scores[1][k], each[:, k]) for k, name in enumerate(columns)]
    for name, a, b, drawn in rows:
        low, high = np.quantile(drawn, [0.025, 0.975])
        print(f"{name:<16}{a:>9.4f}{b:>9.4f}{b - a:>+9.4f}{drawn.std(ddof=1):>9.4f}   {low:+.4f} to {high:+.4f}")


if __name__ == "__main__":
    try:
        main()
    except Fb3Error as error:
        raise SystemExit(f"error: {error}") from None
