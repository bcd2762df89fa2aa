#!/usr/bin/env python3
"""Kills `fb3 infer` at random moments after its first file stands, and cuts it by deadlines: is each file valid?

    python benchmarks/infer_kills.py BUNDLE --data DIR [--kills 100] [--seed 0] [--shares 0.1 0.3 0.6 1] [--truth CSV]

Runs once to the end, which tells how long that takes, then again and again, each killed (SIGKILL) at a random moment
between its first file and that end. Valid: the ids of the sample submission in its order, finite numbers, in range.
Says how long the first file took, too, from the start of the process. Then runs with deadlines, shares of the whole
time; with the truths of the test's ids, the MCRMSE tells whether more time makes a better submission.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.targets.metrics import mcrmse


def start(bundle: Path, data: Path, out: Path, *options: str) -> tuple[subprocess.Popen, float]:
    """A process whose first file stands, and the seconds that it took."""
    out.unlink(missing_ok=True)
    begun = time.monotonic()
    call = [sys.executable, "-m", "fb3", "infer", str(bundle), "--data", str(data), "--out", str(out), *options]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not out.exists():
        if process.poll() is not None:
            sys.exit(f"{' '.join(call)} ended before its first file:\n{process.stderr.read().decode()[-2000:]}")
        time.sleep(0.002)
    return process, time.monotonic() - begun


def fault_of(out: Path, sample: pd.DataFrame) -> str | None:
    """Faults of a submission."""
    try:
        table = pd.read_csv(out, dtype={sample.columns[0]: str})
    except (OSError, ValueError) as error:
        return repr(error)
    if list(table.columns) != list(sample.columns) or table.iloc[:, 0].tolist() != sample.iloc[:, 0].tolist():
        return "other columns or ids"
    values = table.iloc[:, 1:].to_numpy(np.float64)
    return None if np.isfinite(values).all() and values.min() >= 1 and values.max() <= 5 else "a number out of range"


def mcrmse_of(out: Path, truth: Path | None) -> float:
    """The MCRMSE of a submission against truths by id; NaN where there are none."""
    if truth is None:
        return float("nan")
    predicted = pd.read_csv(out)
    identifier, *columns = predicted.columns
    true = pd.read_csv(truth).set_index(identifier).loc[predicted[identifier], columns]
    return mcrmse(true.to_numpy(), predicted[columns].to_numpy())


def cut_by_deadlines(
    bundle: Path, data: Path, out: Path, sample: pd.DataFrame, whole: float, shares: list[float], truth: Path | None
) -> list[str]:
    """Prints a line for each share of the whole time; returns the faults."""
    faults = []
    print(f"{'deadline':>14}{'took':>9}{'folds':>9}{'MCRMSE':>10}  valid")
    for share in shares:
        begun, seconds = time.monotonic(), share * whole
        process, _ = start(bundle, data, out, *(["--deadline", f"{seconds:.2f}s"] if share < 1 else []))
        process.communicate()
        took = time.monotonic() - begun
        folds = json.loads(out.with_suffix(".report.json").read_text())["folds"]
        used, fault = sum(fold["status"] == "used" for fold in folds), fault_of(out, sample)
        faults += [fault] if fault else []
        score = float("nan") if fault else mcrmse_of(out, truth)
        cells = f"{f'{share:.0%}: {seconds:.1f} s':>14}{took:>7.1f} s{used:>4} of {len(folds)}{score:>10.5f}"
        print(f"{cells}  {fault or 'yes'}", flush=True)
    return faults


def main() -> None:
    """Prints the counts; exit status 1 where one was not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="with test.csv and sample_submission.csv; scores 1-5")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.3, 0.6, 1.0], help="of the whole time")
    parser.add_argument("--truth", type=Path, help="CSV with the truths of the test's ids")
    arguments = parser.parse_args()
    sample = pd.read_csv(arguments.data / "sample_submission.csv")
    sample[sample.columns[0]] = sample.iloc[:, 0].astype(str)
    rng, firsts, faults, means = random.Random(arguments.seed), [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "submission.csv"
        process, first = start(arguments.bundle, arguments.data, out)
        begun = time.monotonic()
        process.communicate()
        length = time.monotonic() - begun
        print(f"whole: {length:.1f} s after the first file, exit status {process.returncode}", flush=True)
        for _ in range(arguments.kills):
            process, first = start(arguments.bundle, arguments.data, out)
            firsts.append(first)
            time.sleep(rng.uniform(0, length))
            process.kill()
            process.communicate()
            if fault := fault_of(out, sample):
                faults.append(fault)
                continue
            means += pd.read_csv(out).iloc[:, 1:].nunique().max() == 1
        cut = (arguments.bundle, arguments.data, out, sample, first + length, arguments.shares, arguments.truth)
        late = cut_by_deadlines(*cut)
    valid = arguments.kills - len(faults)
    print(f"{arguments.kills} kills: {valid} valid submissions, {means} of means alone, {valid - means} with folds")
    if firsts:
        print(f"first file: median {statistics.median(firsts):.2f} s, at most {max(firsts):.2f} s")
    sys.exit("\n".join(faults + late) or 0)


if __name__ == "__main__":
    main()
