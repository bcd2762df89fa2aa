#!/usr/bin/env python3
"""From the start of the process to the first batch: `fb3 infer` against a bare script that loads the same weights.

    python benchmarks/startup.py RUN --data DIR [--rounds N] [--json FILE]

The bare script imports torch, AutoModel and AutoTokenizer, loads tokenizer and encoder with from_pretrained, reads
test.csv and tokenises it, and does no more: no pooling, no head, no submission, no hash. fb3 packs the run's first fold
and is called as a user calls it. Fresh processes in turn; each ends where its encoder would get the first batch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import csv, os, sys, time
import torch
from transformers import AutoModel, AutoTokenizer
folder, test, column, length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
with open(test, newline="", encoding="utf-8") as file:
    texts = [row[column] for row in csv.DictReader(file)]
batch = tokenizer(texts, padding=True, truncation=True, max_length=int(length), return_tensors="pt")
print("first batch", time.monotonic(), time.process_time(), flush=True)
os._exit(0)
"""

# Changes nothing but Scorer.forward, once its module has been imported: the first call says the time and ends.
FB3 = """
import importlib.machinery, os, runpy, sys, time

def ends_here(*arguments):
    print("first batch", time.monotonic(), time.process_time(), flush=True)
    os._exit(0)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "fb3.models.scorer":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.Scorer.forward = ends_here
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
sys.argv = ["fb3", "infer", *sys.argv[1:]]
runpy.run_module("fb3", run_name="__main__", alter_sys=True)
"""


def pack(run: Path, folder: Path) -> dict[str, list[str]]:
    """The run's first fold as a bundle, and its encoder alone as transformers saves one; the arguments for both."""
    from fb3.bundles.packing import write_bundle
    from fb3.recipe import load_recipe
    from fb3.runs.checkpoint import read_weights, write_weights

    recipe, fold = load_recipe(run / "recipe.yaml"), min(run.glob("fold*/")).name
    shutil.copytree(run / "encoder", folder / "bare")
    tensors = read_weights(run / fold / "model.safetensors")
    own = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    write_weights(own, folder / "bare" / "model.safetensors")
    shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("fold[0-9]*"))
    shutil.copytree(run / fold, folder / "run" / fold)
    bundle = write_bundle([folder / "run"], folder / "bundle").path
    return {
        "bare": [str(folder / "bare"), "TEST", recipe.data.text_column, str(recipe.data.max_length)],
        "fb3": [str(bundle), "--data", "DATA", "--out", str(folder / "submission.csv")],
    }


def measure(program: str, arguments: list[str]) -> dict[str, float]:
    """Seconds from the start of a fresh process to its first batch, by the clock and of CPU time."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    end, cpu = map(float, done.stdout.rpartition("first batch")[2].split())
    return {"wall": end - start, "cpu": cpu}


def main() -> None:
    """Runs both in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder; its first fold is used")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FB3_DATA", "../shared/data/fb3")))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    places = {"DATA": str(arguments.data), "TEST": str(arguments.data / "test.csv")}
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            kind: [places.get(each, each) for each in call] for kind, call in pack(arguments.run, Path(folder)).items()
        }
        for number in range(arguments.rounds + 1):
            seconds = {kind: measure(BARE if kind == "bare" else FB3, call) for kind, call in calls.items()}
            if number:  # the first only fills the caches
                rounds.append(seconds)
    print(f"{'to the first batch, s':<28}{'bare':>10}{'fb3':>10}{'ratio':>8}{'(least':>9}{'to most)':>10}")
    summary = {}
    for key, label in (("wall", "by the clock"), ("cpu", "CPU time")):
        bare, ours = (statistics.median(each[kind][key] for each in rounds) for kind in ("bare", "fb3"))
        ratios = sorted(each["fb3"][key] / each["bare"][key] for each in rounds)
        summary[key] = statistics.median(ratios)
        print(f"{label:<28}{bare:>10.2f}{ours:>10.2f}{summary[key]:>7.2f}x{ratios[0]:>8.2f}x{ratios[-1]:>9.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratio": summary, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
