#!/usr/bin/env python3
"""Seconds an essay and peak memory of `fb3 infer`, by the number of essays; a fresh process for each.

    python benchmarks/scale.py WORK [--essays 3000 10000 30000 100000] [--run RUN] [--json FILE]

Without --run the built-in `tiny` is trained on synthetic essays in WORK, for one epoch. The essays to predict are two
synthetic ones each, about 400 tokens. Memory is the largest resident set of the process; ms an essay are of CPU
time, start-up included, so that other work on the machine does not count.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from fb3.bundles.packing import write_bundle
from fb3.demo.synthetic import ID, TARGETS, TEXT, make_essays, write_competition

OVERRIDES = ["data.max_length=512", "train.epochs=1", "folds.count=2"]
DIFFERENT = 3000  # texts; further essays repeat them in pairs of their own


def train(work: Path) -> Path:
    """A run of `tiny`, one fold."""
    run = work / "tiny"
    if not (run / "fold0" / "fold.json").is_file():
        write_competition(work / "data", 200, 20, seed=1)
        call = [sys.executable, "-m", "fb3", "train", "tiny", *OVERRIDES, "--folds", "0"]
        subprocess.run([*call, "--data", str(work / "data"), "--out", str(run)], check=True)
    return run


def write_test(folder: Path, essays: int) -> None:
    """test.csv and its sample submission, written row by row."""
    texts = [essay.text for essay in make_essays(DIFFERENT, seed=2)]
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "test.csv").open("w", encoding="utf-8", newline="") as test,
        (folder / "sample_submission.csv").open("w", encoding="utf-8", newline="") as sample,
    ):
        rows, form = csv.writer(test), csv.writer(sample)
        rows.writerow([ID, TEXT])
        form.writerow([ID, *TARGETS])
        for number in range(essays):
            one, other = number % DIFFERENT, (number * 7 + number // DIFFERENT) % DIFFERENT
            rows.writerow([f"{number:012d}", f"{texts[one]}\n\n{texts[other]}"])
            form.writerow([f"{number:012d}", *[3.0] * len(TARGETS)])


def measure(bundle: Path, data: Path, out: Path) -> dict[str, float]:
    """Seconds and peak memory, in MB, of a fresh process; and the seconds until the essays are tokens."""
    call = [sys.executable, "-m", "fb3", "infer", str(bundle), "--data", str(data), "--out", str(out), "--strict"]
    start = time.perf_counter()
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(call)} failed; see what it says")
    phases = json.loads(out.with_suffix(".report.json").read_text(encoding="utf-8"))["phases"]
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu": cpu, "tokens": phases["tokens"], "peak_mb": usage.ru_maxrss * unit / 1e6}


def main() -> None:
    """Measures each number of essays and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for everything that is made")
    parser.add_argument("--essays", type=int, nargs="+", default=[3000, 10_000, 30_000, 100_000])
    parser.add_argument("--run", type=Path, help="a run folder of one or more folds, instead of `tiny`")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = write_bundle([arguments.run or train(arguments.work)], arguments.work / "bundle").path
    print(f"{'essays':>8}{'wall, s':>10}{'CPU, s':>10}{'ms an essay':>13}{'beside':>8}{'peak, MB':>10}{'more, MB':>10}")
    rows: list[dict[str, float]] = []
    for essays in arguments.essays:
        write_test(arguments.work / f"test{essays}", essays)
        row = measure(bundle, arguments.work / f"test{essays}", arguments.work / "submission.csv")
        rows.append({"essays": essays, **row, "ms": 1000 * row["cpu"] / essays})
        beside, more = rows[-1]["ms"] / rows[0]["ms"], row["peak_mb"] - rows[0]["peak_mb"]
        print(
            f"{essays:>8}{row['seconds']:>10.1f}{row['cpu']:>10.1f}{rows[-1]['ms']:>13.2f}{beside:>7.2f}x"
            f"{row['peak_mb']:>10.0f}{more:>10.0f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
