#!/usr/bin/env python3
"""Ensembles of real out-of-fold predictions: weights fitted on some of the essays, scored on the others.

    python benchmarks/ensembles.py [FOLDER] [--train FILE] [--splits 6] [--folds 5] [--fresh]

FOLDER, or the variable FB3_OOF, names a folder of CSVs with out-of-fold predictions of "Feedback Prize - English
Language Learning": text_id and the six scores, in any order. The MCRMSEs are means over random splits into folds. The
standard error of the difference to equal weights is the bootstrap's over essays, the mean over the splits.

With --fresh, `fb3 ensemble` sees files without a fold's essays, and its honest score is compared with the score on
these. Both are differences to equal weights on the same essays, because some essays are harder than others.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.ensembles.calibration import calibrated
from fb3.ensembles.comparison import Blend, Stack
from fb3.ensembles.ensemble import weigh
from fb3.ensembles.members import read_members
from fb3.targets.metrics import METRICS, mcrmse

ID = "text_id"


def compare(stacks: list[Stack]) -> dict[str, list[tuple[Blend, float, float]]]:
    """Each method's blends on every split, with the difference to equal weights and its standard error."""
    found: dict[str, list[tuple[Blend, float, float]]] = {}
    for stack in stacks:
        blends = stack.fit_all()
        for blend in blends:
            found.setdefault(blend.title, []).append((blend, *stack.gain(blend, blends[0])))
        found.setdefault("the default", []).append((chosen := stack.choose(blends), *stack.gain(chosen, blends[0])))
    return found


def fresh_scores(files: list[Path], train: Path, splits: list[np.ndarray], folds: int) -> np.ndarray:
    """By how much the ensemble is better than equal weights, as its report says and on essays it never saw, (S, 2)."""
    tables, truth = {file: pd.read_csv(file, dtype={ID: str}).set_index(ID) for file in files}, pd.read_csv(train)
    truth, found = truth.set_index(truth.pop(ID).astype(str)), []
    for split, fold in ((split, fold) for split in splits for fold in range(folds)):
        ids = tables[files[0]].index.sort_values()
        seen, fresh = ids[split % folds != fold], ids[split % folds == fold]
        with tempfile.TemporaryDirectory() as folder:
            for file, table in tables.items():
                table.loc[seen].to_csv(Path(folder) / file.name)
            truth.loc[seen].to_csv(Path(folder) / "train.csv")
            paths = [Path(folder) / file.name for file in files]
            got = weigh(paths, Path(folder) / "ensemble", data=Path(folder), competition="feedback-ell")
        columns = got.stack.columns
        predicted = np.stack([tables[file].loc[fresh, columns].to_numpy() for file in files])
        blended = np.einsum("mnk,km->nk", predicted, got.chosen.weights)
        if got.chosen.calibration is not None:
            blended = calibrated(blended, got.chosen.calibration)
        scores = [
            mcrmse(truth.loc[fresh, columns].to_numpy(), each.clip(1, 5)) for each in (predicted.mean(0), blended)
        ]
        found.append((got.stack.gain(got.chosen, got.blends[0])[0], scores[0] - scores[1]))
        print(f"{got.chosen.title:<40}better than equal: says {found[-1][0]:+.5f}, is {found[-1][1]:+.5f}", flush=True)
    return np.array(found)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("FB3_OOF"), metavar="FOLDER")
    parser.add_argument("--train", type=Path, help="train.csv with the truths; default: ../fb3/train.csv beside FOLDER")
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="compare the report's honest score with fresh essays'")
    arguments = parser.parse_args()
    files = sorted(Path(arguments.folder).glob("*.csv")) if arguments.folder else []
    if not files:
        raise SystemExit("skipped: give a folder of CSVs with out-of-fold predictions of FB3, or set FB3_OOF")
    train = arguments.train or Path(arguments.folder).parent / "fb3" / "train.csv"
    members = read_members(files, train.parent, competition="feedback-ell")
    draws = [np.random.default_rng(number).permutation(len(members.ids)) for number in range(arguments.splits)]
    if arguments.fresh:
        found = fresh_scores(files, train, draws, arguments.folds)
        says, real = found.mean(0)
        print(f"mean of {len(found)} splits: says {says:+.5f}, is {real:+.5f}, too good by {says - real:+.5f}")
        return
    columns = members.recipe.data.target_columns
    stacks = [Stack(members.predicted, members.truth, d % arguments.folds, METRICS["mcrmse"], columns) for d in draws]
    single = min(stacks[0].score(member).overall for member in members.predicted)
    print(f"{len(files)} members, {len(members.ids)} essays, {arguments.splits} x {arguments.folds} folds")
    print(f"best member {single:.5f}")
    print(f"{'':<38}{'same essays':>12}{'other essays':>14}{'better than equal':>20}{'members':>9}")
    for title, fits in compare(stacks).items():
        blends, gains, errors = zip(*fits, strict=True)
        same, honest = (np.mean([getattr(blend, name) for blend in blends]) for name in ("same", "honest"))
        used = np.mean([blend.weights.any(0).sum() for blend in blends])
        print(f"{title:<38}{same:>12.5f}{honest:>14.5f}{np.mean(gains):>11.5f} ± {np.mean(errors):.5f}{used:>9.1f}")


if __name__ == "__main__":
    main()
