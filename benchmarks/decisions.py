#!/usr/bin/env python3
"""Decisions for quadratic weighted kappa on real out-of-fold predictions: fitted on some essays, scored on others.

    python benchmarks/decisions.py [FOLDER] [--splits 20] [--fit 0.5]

FOLDER, or the variable FB3_AES2, names a folder with oof.csv of "Learning Agency Lab - Automated Essay Scoring 2.0":
the column score, 1 to 6, and predictions in columns that begin with model, whose mean is decided. The kappas are means
over random splits with their standard deviation; splits overlap, so it is no standard error.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.recipe.decision import METHODS, methods_for
from fb3.targets.decisions import decide, fit_decision
from fb3.targets.metrics import METRICS

QWK = METRICS["qwk"]


def kappas(truth: np.ndarray, predicted: np.ndarray, method: str, splits: int, fit: float) -> np.ndarray:
    """Kappa on the fitted and on the other essays of each split, (splits, 2); from (N, 1) each."""
    out = np.empty((splits, 2))
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(truth))
        parts = np.split(order, [round(fit * len(order))])
        decision = fit_decision(METHODS[method], QWK, truth[parts[0]], predicted[parts[0]], ["score"])
        for place, rows in enumerate(parts):
            out[split, place] = QWK.score(truth[rows], decide(decision, predicted[rows]), ["score"]).overall
    return out


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """True scores and the mean of the models' predictions, (N, 1) each."""
    table = pd.read_csv(folder / "oof.csv")
    return table[["score"]].to_numpy(float), table.filter(regex="^model").mean(axis=1).to_numpy()[:, None]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("FB3_AES2"), metavar="FOLDER")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--fit", type=float, default=0.5, help="share of the essays that a decision is fitted on")
    arguments = parser.parse_args()
    if not arguments.folder or not (Path(arguments.folder) / "oof.csv").is_file():
        raise SystemExit("skipped: give the folder of AES 2.0's oof.csv, or set FB3_AES2")
    truth, predicted = read(Path(arguments.folder))
    print(f"{len(truth)} essays, {arguments.splits} splits, fitted on {arguments.fit:.0%} of each")
    print(f"{'':<12}{'same essays':>14}{'other essays':>14}{'deviation':>11}")
    for method in methods_for("regression"):
        found = kappas(truth, predicted, method, arguments.splits, arguments.fit)
        (same, other), deviation = found.mean(0), found[:, 1].std(ddof=1)
        print(f"{method:<12}{same:>14.4f}{other:>14.4f}{deviation:>11.4f}")


if __name__ == "__main__":
    main()
