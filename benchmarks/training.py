#!/usr/bin/env python3
"""fb3's training against what others do: the same encoder, essays, rates and batch size, fresh processes, in turn.

    python benchmarks/training.py RECIPE [KEY=VALUE ...] [--data DIR] [--essays N] [--rounds R]

| kind | |
|---|---|
| plain | the notebooks' loop: padded to max_length, random order, fp32 (fp16 autocast on a GPU), AdamW |
| trainer | transformers' Trainer: essays of like length together, padded by batch, bf16 where the chip has it |
| fb3 | `fb3 train` |

One epoch over N essays, then the score of N / 2 others, which all kinds should agree in: what a batch holds differs, so
no more than that can be asked. The time is that of the steps. MFU is of real tokens, three times the forward pass's
FLOPs a step, against the largest rate of a bf16 matrix product in the same round.
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
import pandas as pd
from inference import flops_of
from peers import peak, plain_training, restore_attention, trainer_training

KINDS = ("plain", "trainer", "fb3")
TOLERANCE = 0.05  # between two scores: of a few dozen essays after one short epoch


def worker(kind: str, recipe_file: Path, data: Path, out: Path) -> None:
    """One process: trains an epoch on fold 1's essays, scores fold 0's."""
    from fb3.recipe import load_recipe

    recipe = load_recipe(recipe_file)
    if kind == "fb3":
        from fb3.training.run import train

        train(recipe, data, out, folds=[0])
        last = {line["event"]: line for line in map(json.loads, (out / "log.jsonl").open())}
        seconds, score = last["step"]["elapsed"], last["evaluation"]["score"]
    else:
        seconds, score = by_others(kind, recipe, data, out)
    print(json.dumps({"seconds": seconds, "score": score}))


def by_others(kind, recipe, data, out):
    """The same scorer, optimizer and schedule in another loop."""
    import torch
    from transformers import AutoTokenizer

    from fb3.data.batches import steps_per_epoch
    from fb3.data.essays import read_essays
    from fb3.data.tokens import encode_texts
    from fb3.models.backbone import export_encoder
    from fb3.models.build import build_scorer
    from fb3.prediction.inference_loop import predict
    from fb3.system.devices import pick_device
    from fb3.system.seeds import seed_everything
    from fb3.targets.build import target_of
    from fb3.tasks.build import build_task
    from fb3.training.optimizer import build_optimizer
    from fb3.training.schedule import build_schedule

    export_encoder(recipe.model, out / "encoder", [])
    essays = read_essays(data / "train.csv", recipe.data, target_of(recipe), recipe.folds)
    held = essays["fold"].to_numpy() == 0
    targets = torch.tensor(essays[list(recipe.data.target_columns)].to_numpy(np.float32))
    texts = essays[recipe.data.text_column].to_numpy()
    seed_everything(recipe.train.seed)
    scorer = build_scorer(recipe, out / "encoder", init="pretrained")
    restore_attention(scorer.encoder)
    task = build_task(recipe)
    scorer.head.start_at(task.first_bias(targets[~held]))
    scorer.to(pick_device()).train()
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=False)
    steps = steps_per_epoch(int((~held).sum()), recipe.train.batch_size, 1)
    schedule = build_schedule(optimizer, recipe.schedule, steps)
    tokenizer = AutoTokenizer.from_pretrained(out / "encoder", local_files_only=True)
    loop = {"plain": plain, "trainer": trainer}[kind]
    start = time.perf_counter()
    loop(recipe, scorer, task, optimizer, schedule, tokenizer, texts[~held].tolist(), targets[~held])
    seconds = time.perf_counter() - start
    encoded = encode_texts(texts.tolist(), out / "encoder", recipe.data)
    ids = essays[recipe.data.id_column].to_numpy()
    found = predict(scorer, task, encoded, ids, rows=np.flatnonzero(held), shown=False)
    return seconds, task.score(targets[held].numpy(), found.values).overall


def plain(recipe, scorer, task, optimizer, schedule, tokenizer, texts, targets):
    """The notebooks' loop, which tokenises as it goes."""
    import torch

    limits = {"padding": "max_length", "truncation": True, "max_length": recipe.data.max_length}

    def batches():
        for rows in torch.randperm(len(texts)).split(recipe.train.batch_size):
            encoded = tokenizer([texts[row] for row in rows], return_tensors="pt", **limits)
            yield {**encoded, "targets": targets[rows]}

    precision = "fp16" if next(scorer.parameters()).is_cuda else "fp32"
    plain_training(scorer, batches(), task, optimizer, schedule, recipe.optimizer.clip, precision)


def trainer(recipe, scorer, task, optimizer, schedule, tokenizer, texts, targets):
    """transformers' Trainer."""
    from transformers import DataCollatorWithPadding

    from fb3.system.devices import pick_device, pick_precision

    encoded = tokenizer(texts, truncation=True, max_length=recipe.data.max_length)
    names = ("input_ids", "attention_mask")
    rows = [{**{n: encoded[n][row] for n in names}, "labels": targets[row].tolist()} for row in range(len(texts))]
    precision, clip = pick_precision("auto", pick_device()), recipe.optimizer.clip
    collate = DataCollatorWithPadding(tokenizer)
    trainer_training(scorer, rows, collate, task, optimizer, schedule, clip, precision, recipe.train.batch_size)


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The recipe of one epoch, and a folder with the essays: fold 0 to score, fold 1 to train on."""
    from fb3.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, [*arguments.overrides, "train.epochs=1"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    table = pd.read_csv(arguments.data / "train.csv").iloc[: arguments.essays * 3 // 2]
    table["fold"] = (np.arange(len(table)) % 3 > 0).astype(int)
    table.to_csv(folder / "train.csv", index=False)
    return folder / "recipe.yaml", folder


def main() -> None:
    """Runs all kinds in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a built-in name or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FB3_DATA", "../shared/data/fb3")))
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}; the first is compared with")
    parser.add_argument("--essays", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=4, metavar=("KIND", "RECIPE", "DATA", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    if arguments.worker:
        worker(arguments.worker[0], *map(Path, arguments.worker[1:]))
        return
    kinds, rounds = arguments.kinds.split(","), []
    with tempfile.TemporaryDirectory() as home:
        recipe, data = prepared(arguments, Path(home))
        for number in range(arguments.rounds):
            found = {"peak": peak()}
            for kind in kinds:
                out = Path(home) / f"{kind}{number}"
                command = [sys.executable, __file__, "-", "--worker", kind, str(recipe), str(data), str(out)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[kind] = json.loads(done.stdout.splitlines()[-1])
                print(f"round {number + 1}: {kind} {found[kind]['seconds']:.1f} s", file=sys.stderr)
            rounds.append(found)
        run = Path(home) / f"{kinds[-1]}0"
        (run / "recipe.yaml").write_text(recipe.read_text())
        flops, tokens = flops_of(run, data, arguments.essays * 3 // 2)
    report(rounds, kinds, 2 * flops, tokens, arguments)  # two thirds of the essays, three times the forward pass


def report(rounds: list[dict], kinds: list[str], flops: float, tokens: float, arguments: argparse.Namespace) -> None:
    """Prints the table; ends with an error where scores disagree."""
    peaks = statistics.median(r["peak"] for r in rounds) / 1e12
    print(f"{arguments.essays} essays, {tokens:.0f} tokens each; bf16 products reach {peaks:.2f} TFLOP/s")
    print(f"{'':<10}{'steps, s':>10}{'ratio':>8}{'MFU':>7}{'score':>9}")
    scores = []
    for kind in kinds:
        seconds = statistics.median(r[kind]["seconds"] for r in rounds)
        ratio = statistics.median(r[kinds[0]]["seconds"] / r[kind]["seconds"] for r in rounds)
        mfu = statistics.median(flops / r[kind]["seconds"] / r["peak"] for r in rounds)
        scores.append(statistics.median(r[kind]["score"] for r in rounds))
        print(f"{kind:<10}{seconds:>10.1f}{ratio:>7.2f}x{mfu:>7.0%}{scores[-1]:>9.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"flops": flops, "rounds": rounds}, indent=1) + "\n")
    if max(scores) - min(scores) > TOLERANCE:
        sys.exit("the scores differ by more than chance: the ratios do not count")


if __name__ == "__main__":
    main()
