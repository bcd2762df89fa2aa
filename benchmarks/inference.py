#!/usr/bin/env python3
"""fb3's inference against the plain notebook loop: same fold, same essays, fresh processes, in turn.

    python benchmarks/inference.py RUN --data DIR [--essays N] [--repeats R] [--json FILE]

The plain loop pads every essay to max_length and predicts batches of 8 in fp32 under `torch.no_grad`, as notebooks do.
A ratio counts only where the outputs agree within bf16; the table says how far they are apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TOLERANCE = 0.03  # bf16 keeps 8 bits: about 0.4 % of an encoder's state, less of a score


def worker(kind: str, run: Path, data: Path, essays: int, out: Path) -> None:
    """One process: loads, tokenises, predicts; writes values and seconds."""
    start = time.perf_counter()
    import torch

    from fb3.checkpoint import load_fold
    from fb3.essays import read_essays
    from fb3.models import load_tokenizer
    from fb3.prediction import lower_weights, predict
    from fb3.recipe import load_recipe
    from fb3.runtime import pick_device, pick_precision
    from fb3.tasks import build_task
    from fb3.tokens import tokenise

    recipe = load_recipe(run / "recipe.yaml")
    table = read_essays(data / "train.csv", recipe.data).iloc[:essays]
    texts, ids = table[recipe.data.text_column].tolist(), table[recipe.data.id_column].to_numpy()
    device = pick_device()
    scorer = load_fold(recipe, run / "encoder", min(run.glob("fold*"))).to(device)
    loaded = time.perf_counter()
    precision = "fp32"
    if kind == "fb3":
        precision = pick_precision(recipe.predict.precision, device)
        encoded = tokenise(texts, *load_tokenizer(run / "encoder"), recipe.data)
        tokens = int(encoded.lengths.sum())
        values = predict(
            lower_weights(scorer, precision), build_task(recipe), encoded, ids, precision=precision, shown=False
        ).values
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(run / "encoder", local_files_only=True)
        parts, tokens = [], 0
        with torch.no_grad():
            for first in range(0, len(texts), 8):
                batch = tokenizer(
                    texts[first : first + 8],
                    padding="max_length",
                    truncation=True,
                    max_length=recipe.data.max_length,
                    return_tensors="pt",
                ).to(device)
                tokens += int(batch["attention_mask"].sum())
                parts.append(scorer(batch).scores.cpu())
        values = torch.cat(parts).numpy()
    end = time.perf_counter()
    np.save(out, values)
    print(json.dumps({"load": loaded - start, "predict": end - loaded, "tokens": tokens, "precision": precision}))


def measure(kind: str, arguments: argparse.Namespace) -> tuple[dict, np.ndarray]:
    """Runs a worker in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "values.npy"
        command = [sys.executable, __file__, str(arguments.run), "--data", str(arguments.data)]
        command += ["--essays", str(arguments.essays), "--worker", kind, "--values", str(out)]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        whole = time.perf_counter() - start
        return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}, np.load(out)


def main() -> None:
    """Runs both in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder; its first fold is used")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FB3_DATA", "../shared/data/fb3")))
    parser.add_argument("--essays", type=int, default=10**9, help="only the first so many")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=["plain", "fb3"], help=argparse.SUPPRESS)
    parser.add_argument("--values", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.run, arguments.data, arguments.essays, arguments.values)
        return
    rounds = []
    for number in range(arguments.repeats):
        (plain, truth), (ours, values) = measure("plain", arguments), measure("fb3", arguments)
        apart = float(np.abs(truth - values).max())
        rounds.append({"plain": plain, "fb3": ours, "apart": apart})
        print(f"round {number + 1}: plain {plain['predict']:.1f} s, fb3 {ours['predict']:.1f} s", file=sys.stderr)
    essays = len(truth)
    print(f"{essays} essays, {ours['tokens'] / essays:.0f} tokens each, fb3 in {ours['precision']}")
    print(f"{'':<28}{'plain':>10}{'fb3':>10}{'ratio':>8}")
    for key, label in (("predict", "tokenise and predict, s"), ("whole", "whole process, s")):
        one, two = (statistics.median(r[kind][key] for r in rounds) for kind in ("plain", "fb3"))
        ratio = statistics.median(r["plain"][key] / r["fb3"][key] for r in rounds)
        print(f"{label:<28}{one:>10.1f}{two:>10.1f}{ratio:>7.2f}x")
    worst = max(r["apart"] for r in rounds)
    print(f"largest difference of a score: {worst:.4f} (agree: {worst <= TOLERANCE})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"essays": essays, "rounds": rounds}, indent=1) + "\n")
    if worst > TOLERANCE:
        sys.exit("the outputs differ by more than bf16's precision: the ratio does not count")


if __name__ == "__main__":
    main()
