#!/usr/bin/env python3
"""Kills `fb3 infer` at random moments after its first file stands: is what stands each time a valid submission?

    python benchmarks/infer_kills.py BUNDLE --data DIR [--kills 100] [--seed 0]

Runs once to the end, which tells how long that takes, then again and again, each killed (SIGKILL) at a random moment
between its first file and that end. Valid: the ids of the sample submission in its order, finite numbers, in range.
Says how long the first file took, too, from the start of the process.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def start(bundle: Path, data: Path, out: Path) -> tuple[subprocess.Popen, float]:
    """A process whose first file stands, and the seconds that it took."""
    out.unlink(missing_ok=True)
    begun = time.monotonic()
    call = [sys.executable, "-m", "fb3", "infer", str(bundle), "--data", str(data), "--out", str(out)]
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


def main() -> None:
    """Prints the counts; exit status 1 where one was not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="with test.csv and sample_submission.csv; scores 1-5")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sample = pd.read_csv(arguments.data / "sample_submission.csv")
    sample[sample.columns[0]] = sample.iloc[:, 0].astype(str)
    rng, firsts, faults, means = random.Random(arguments.seed), [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "submission.csv"
        process, _ = start(arguments.bundle, arguments.data, out)
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
    valid = arguments.kills - len(faults)
    print(f"{arguments.kills} kills: {valid} valid submissions, {means} of means alone, {valid - means} with folds")
    print(f"first file: median {statistics.median(firsts):.2f} s, at most {max(firsts):.2f} s")
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
