#!/usr/bin/env python3
"""The worth of each piece of the recipe book: a base recipe against base and one piece, same fold, paired seeds.

    python benchmarks/ablation.py --data DIR --out RUNS [--backbone PATH] [--seeds 42,43,44] [--only NAME ...]

Small enough for a CPU: 1,000 essays, 256 tokens, one epoch, one fold. A run that is there already is not made again, so
the command can be stopped and given again; the table says which rows were not measured. Time is the processor's, memory
the peak of the whole process. On a GPU, --full takes all essays, 512 tokens and the recipe's own epochs; then time and
memory are those of the host alone.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import get_args

from fb3.recipe import Recipe, load_recipe
from fb3.recipe.model import HeadSettings, PoolingSettings
from fb3.recipe.settings import kinds
from fb3.recipe.task import LossKind, TaskSettings
from fb3.recipe.training import OptimizerSettings, ScheduleSettings
from fb3.recipe.tricks import TrickSettings

RECIPE, HUB = "minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"
SMALL = ("data.sample=1000", "data.max_length=256", "train.epochs=1")
# A kind stands here only where its defaults do not fit so short a run, or where other settings are measured too; all
# other kinds follow by their defaults. "a, b" is another form of a.
SPECIAL = {
    "fgm, epsilon 0.1": ["tricks=[{kind: fgm, epsilon: 0.1}]"],
    "pgd": ["tricks=[{kind: pgd, steps: 2}]"],
    "awp": ["tricks=[{kind: awp, from_epoch: 0}]"],
    "awp, epsilon 0.01": ["tricks=[{kind: awp, from_epoch: 0, epsilon: 0.01}]"],
    "ema": ["tricks=[{kind: ema, decay: 0.95}]"],
    "swa": ["tricks=[{kind: swa, start: 0.5, every_steps: 5}]", "schedule.floor=0.3"],
    "pull_to_start": ["tricks=[{kind: pull_to_start, strength: 0.001}]", "optimizer.weight_decay=0"],
    "soup, every 15 steps": ["train.soup={kind: greedy, top: 3}", "train.evaluate_every_steps=15"],
    "r_drop, dropout 0.1": ["task.r_drop={alpha: 1.0}", "model.dropout=0.1"],
    "dropout 0.1": ["model.dropout=0.1"],
    "layer_drop 0.1": ["model.layer_drop=0.1"],
    "mixout 0.1": ["model.mixout=0.1"],
    "reinit 1 layer": ["model.reinit_layers=1"],
    "layer_decay 1.0": ["optimizer.layer_decay=1.0"],
    "no bias correction": ["optimizer.bias_correction=false", "schedule.warmup_share=0.1"],
    "warm-up 10 %": ["schedule.warmup_share=0.1"],
    "cosine_restarts": ["schedule={kind: cosine_restarts, cycles: 2}"],
    "huber": ["task.loss=huber", "task.delta=0.25"],
    "pearson": ["task.terms=[{kind: pearson, weight: 0.1}]"],
    "rank": ["task.terms=[{kind: rank, weight: 0.1}]"],
    "uncertainty": ["task.weighting=uncertainty"],
    "pooling target_tokens": ["data.text.prompt=tokens", "model.pooling={kind: target_tokens}"],
    "head_tail": ["data.truncation=head_tail"],
    "windows": ["data.max_length=1024", "data.windows={length: 256}"],
    "newlines": ["data.text.newlines=true"],
    "capitals": ["data.text.capitals=true"],
    "statistics": ["data.text.statistics=true"],
    "mask 5 %": ["data.augment={mask: 0.05}"],
    "delete 5 %": ["data.augment={delete: 0.05}"],
    "mix 20 %": ["data.augment={mix: 0.2}"],
    "typos 5 %": ["data.augment={typos: 0.05}"],
    "stitched with itself, frozen": ["model.stitch={backbone: BACKBONE, pooling: {kind: mean}}"],
}
UNIONS = {
    "tricks": TrickSettings,
    "model.pooling": PoolingSettings,
    "model.head": HeadSettings,
    "optimizer": OptimizerSettings,
    "schedule": ScheduleSettings,
    "task": TaskSettings,
}
LEFT_OUT = {
    **dict.fromkeys(("classification", "multilabel"), "wants labels"),
    "adamw_8bit": "wants a GPU",
    **dict.fromkeys(("ranger", "lamb", "madgrad"), "wants a library, and rates of its own"),
}


def by_default(base: Recipe) -> dict[str, list[str]]:
    """A piece for each kind that the base does not hold, with the kind's defaults; poolings of layers over all six."""
    found = {loss: [f"task.loss={loss}"] for loss in get_args(LossKind) if loss != base.task.loss}
    for key, union in UNIONS.items():
        held = getattr(attrgetter(key)(base), "kind", None)
        for kind, group in kinds(union).items():
            own = f"{{kind: {kind}, layers: 6}}" if "layers" in group.model_fields else f"{{kind: {kind}}}"
            if kind != held and kind not in LEFT_OUT:
                name = f"pooling {kind}" if key == "model.pooling" else kind
                found[name] = [f"{key}=[{own}]" if key == "tricks" else f"{key}={own}"]
    return found


PIECES = {**by_default(load_recipe(RECIPE)), **SPECIAL}


def run(name: str, overrides: list[str], seed: int, arguments: argparse.Namespace) -> dict | None:
    """Score, processor seconds and peak MiB of one run; made where it is not there yet and `name` was asked for."""
    folder = arguments.out / f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name).split())}-{seed}"
    result = folder / "ablation.json"
    if result.is_file():
        return json.loads(result.read_text())
    if arguments.only and name not in {"base", *arguments.only}:
        return None
    if folder.is_dir():
        shutil.rmtree(folder)  # a run that was stopped midway
    size = [] if arguments.full else list(SMALL)
    backbone = [f"model.backbone={arguments.backbone}"] if arguments.backbone else []
    overrides = [line.replace("BACKBONE", arguments.backbone or HUB) for line in overrides]
    own = {line.split("=")[0] for line in overrides}
    size = [line for line in size if line.split("=")[0] not in own]
    command = [sys.executable, "-m", "fb3", "train", RECIPE, *size, *backbone, f"train.seed={seed}", *overrides]
    process = subprocess.Popen([*command, "--data", arguments.data, "--out", folder, "--folds", "0"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: exit status {os.waitstatus_to_exitcode(status)}")
    scores = json.loads((folder / "scores.json").read_text())
    found = {
        "score": scores["score"],
        "seconds": usage.ru_utime + usage.ru_stime,
        "mib": usage.ru_maxrss / 1024,
    }
    for weights in folder.glob("fold*/**/*.safetensors"):
        weights.unlink()
    result.write_text(json.dumps(found))
    return found


def table(results: dict[str, list[dict | None]]) -> list[str]:
    """Rows of Markdown: difference to the base of the same seed, with its standard error, and the time it takes."""
    base = results["base"]
    rows = ["| piece | difference | standard error | seeds | time | memory |", "|---|---|---|---|---|---|"]
    for name, found in results.items():
        pairs = [(f, b) for f, b in zip(found, base, strict=True) if f and b]
        if name == "base":
            scores = [f["score"] for f, _ in pairs]
            mean = f"{statistics.mean(scores):.4f}" if scores else "not measured"
            rows.append(f"| base | {mean} | | {len(scores)} | 1.0 | 1.0 |")
        elif not pairs:
            rows.append(f"| {name} | not measured | | | | |")
        else:
            deltas = [f["score"] - b["score"] for f, b in pairs]
            error = f"{statistics.stdev(deltas) / math.sqrt(len(deltas)):.4f}" if len(deltas) > 1 else ""
            costs = (statistics.median(f[key] / b[key] for f, b in pairs) for key in ("seconds", "mib"))
            cost = " | ".join(f"{ratio:.1f}" for ratio in costs)
            rows.append(f"| {name} | {statistics.mean(deltas):+.4f} | {error} | {len(deltas)} | {cost} |")
    return rows


def main() -> None:
    """Runs what is missing, seed by seed, and prints the table after each piece."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with train.csv")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--backbone", help="a local folder with the encoder")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--only", nargs="+", default=[], choices=list(PIECES), metavar="NAME", help="these pieces only")
    parser.add_argument("--full", action="store_true", help="all essays, the recipe's own length and epochs")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if arguments.backbone else "0")
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    results: dict[str, list[dict | None]] = {name: [None] * len(seeds) for name in ["base", *PIECES]}
    for position, seed in enumerate(seeds):
        for name in results:
            results[name][position] = run(name, PIECES.get(name, []), seed, arguments)
            (arguments.out / "table.md").write_text("\n".join(table(results)) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
