#!/usr/bin/env python3
"""Kills a training at random moments and goes on each time: does it end as one that nobody killed, bit for bit?

    python benchmarks/kills.py --data DIR --out FOLDER [--kills 50] [--recipe tiny] [--seed 0] [key.sub=value ...]

Trains fold 0 once without a kill. Then starts it again and again, each start killed (SIGKILL) at a random moment of the
time that the whole run took, until one ends by itself; then the next run, until there were enough kills. On a CPU all
runs must be equal to the first.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

USUAL = ("train.precision=fp32", "train.save_every_steps=3", "tricks=[{kind: fgm}, {kind: ema, decay: 0.9}]")
FILES = ("fold0/model.safetensors", "fold0/fold.json", "oof.csv", "scores.json")


def start(arguments: argparse.Namespace, out: Path) -> subprocess.Popen:
    """The same command each time."""
    command = [sys.executable, "-m", "fb3", "train", arguments.recipe, *USUAL, *arguments.overrides]
    command += ["--data", str(arguments.data), "--out", str(out), "--folds", "0"]
    command.append("--resume")  # one killed after its last write has trained all, and that is no error
    with (out.parent / "said.txt").open("a") as said:
        return subprocess.Popen(command, stderr=said)


def result(run: Path) -> dict[str, object]:
    """Hashes of what the fold came to, and its evaluations without their times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in {"time", "elapsed"}} for line in lines]
    hashes = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in FILES}
    return {**hashes, "evaluations": [line for line in kept if line["event"] == "evaluation"]}


def main() -> None:
    """Prints one line a run, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True)
    rng, begun = random.Random(arguments.seed), time.monotonic()
    if start(arguments, arguments.out / "whole").wait():
        raise SystemExit(f"the whole run failed: {arguments.out / 'said.txt'}")
    seconds, expected = time.monotonic() - begun, result(arguments.out / "whole")
    print(f"whole: {seconds:.0f} s", flush=True)
    kills, runs, equal = 0, 0, 0
    while kills < arguments.kills:
        run, mine = arguments.out / f"killed{runs}", 0
        while True:
            process = start(arguments, run)
            try:
                status = process.wait(rng.uniform(0, 0.9 * seconds) if kills < arguments.kills else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills, mine = kills + 1, mine + 1
                continue
            if status:
                raise SystemExit(f"{run}: exit status {status} after {mine} kills: {arguments.out / 'said.txt'}")
            break
        same = result(run) == expected
        print(f"{run.name}: {mine} kills, {'bit-identical' if same else 'DIFFERENT'}", flush=True)
        runs, equal = runs + 1, equal + same
        if same:
            shutil.rmtree(run)
    print(f"{kills} kills, each gone on from; {runs} runs ended, {equal} bit-identical")
    sys.exit(equal < runs)


if __name__ == "__main__":
    main()
