"""The steps of gpu.py, each in a process of its own. Results are written as they come, since a step may be killed."""

import copy
import itertools
import json
import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import (
    DTYPES,
    SHAPES,
    plain_scores,
    plain_training,
    product_rate,
    restore_attention,
    trainer_scores,
    trainer_training,
)

from fb3.data.tokens import Encoded
from fb3.models.flops import forward_flops
from fb3.recipe import Recipe, load_recipe
from fb3.system.devices import pick_device
from fb3.system.seeds import seed_everything

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 128_100  # DeBERTa-v3's: its embeddings are half of the weights that training moves
ROUNDS, SHARE = 4, 8.0  # rounds at most, the first to warm up; seconds after which no further one is begun
EXACT = 16  # essays whose scores are compared with those in fp32
TIMES, LEAST = 3, 1e-4  # how far off the scores may be: times what transformers' own rounds off in that precision
LOSSES_APART = 0.05  # share by which two mean losses over the same essays, in another order, may differ
MOVED = 0.5  # the least share of the plain loop's way that the head must have gone in training
Write = Callable[[dict[str, Any]], None]


def run(step: tuple, work: Path, out: Path, small: bool) -> None:
    """Runs a step; the file `out` is always whole."""

    def write(found: dict[str, Any]) -> None:
        aside = out.with_suffix(".part")
        aside.write_text(json.dumps(found))
        aside.replace(out)

    function = {"device": device, "tests": check, "infer": infer, "train": train, "startup": startup}[step[0]]
    function(*step[1:], work=work, small=small, write=write)


def place() -> torch.device:
    return pick_device("cuda:0" if torch.cuda.is_available() else "cpu")


def wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)


def device(work: Path, small: bool, write: Write) -> None:
    """The device, and its speed at matrix products and copies."""
    import importlib.metadata
    import importlib.util

    on, found = place(), {}
    for package in ("torch", "transformers", "accelerate"):
        there = importlib.util.find_spec(package)
        found[package] = importlib.metadata.version(package) if there else None
    if on.type == "cuda":
        told = torch.cuda.get_device_properties(on)
        found |= {
            "name": told.name,
            "capability": f"sm_{told.major}{told.minor}",
            "memory_gib": told.total_memory / 2**30,
        }
        found |= {"devices": torch.cuda.device_count(), "cuda": torch.version.cuda, "driver": _driver()}
    write(found)
    sizes = {"bf16": 512, "fp32": 512} if small else {"fp16": 8192, "bf16": 8192, "fp32": 4096}
    for precision, size in sizes.items():
        found[f"{precision}_tflops"] = product_rate(on, DTYPES[precision], size) / 1e12
        write(found)
    block = torch.ones(2**20 if small else 2**28, device=on)
    seconds = [_timed(lambda: block.clone(), on)[0] for _ in range(10)]
    write(found | {"copies_gb_a_second": 2 * block.nbytes / min(seconds) / 1e9})


def _driver() -> str | None:
    try:
        call = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10).stdout.split("\n")[0] or None
    except (OSError, subprocess.SubprocessError):
        return None


def _timed(call: Callable[[], Any], on: torch.device) -> tuple[float, Any]:
    wait(on)
    start = time.perf_counter()
    out = call()
    wait(on)
    return time.perf_counter() - start, out


def check(file: str, work: Path, small: bool, write: Write, quiet: float = 90.0) -> None:
    """Runs pytest on a file. A test that crashes, or prints nothing for `quiet` seconds, is passed over."""
    outcomes: dict[str, str] = {}
    for _ in range(6):
        call = [sys.executable, "-m", "pytest", "-vv", "-rfEs", "-n", "0", "-p", "no:cacheprovider", "--color=no", file]
        call += [part for name in outcomes for part in ("--deselect", name)]
        if not _has_xdist():
            call[call.index("-n") : call.index("-n") + 2] = ["-o", "addopts="]
        process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        before, last = len(outcomes), None
        for name, outcome in _outcomes(process, quiet):
            last = name if outcome is None else last
            if outcome:
                outcomes[name] = outcome
                write(_summed(outcomes))
        if process.wait() in (0, 1, 5):
            break
        if last is None or last in outcomes:  # it broke between tests: nothing tells which to pass over
            outcomes[f"{file} after {last}"] = f"pytest ended with {process.returncode}"
            break
        outcomes[last] = f"ended with {process.returncode}"
        write(_summed(outcomes))
        if len(outcomes) == before:
            break
    write(_summed(outcomes))
    bad = [name for name, outcome in outcomes.items() if outcome not in ("PASSED", "SKIPPED")]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(outcomes)} failed: {', '.join(bad)}")


def _has_xdist() -> bool:
    import importlib.util

    return importlib.util.find_spec("xdist") is not None


def _outcomes(process: subprocess.Popen, quiet: float) -> Iterator[tuple[str, str | None]]:
    """Each test as it begins, with none, and as it ends, with its outcome; kills a process that prints nothing."""
    text, begun = "", None
    while True:
        if not select.select([process.stdout], [], [], quiet)[0]:
            process.kill()
        part = os.read(process.stdout.fileno(), 65536).decode(errors="replace")
        if not part:
            return
        print(part, end="", flush=True)
        *whole, text = (text + part).split("\n")
        for line in (*whole, text):
            if found := re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line):
                yield found[1], found[2]
            elif (found := re.match(r"(\S+::.+?)(?: Fatal Python error.*)? ?$", line)) and found[1] != begun:
                begun = found[1]
                yield begun, None


def _summed(outcomes: dict[str, str]) -> dict[str, Any]:
    counts = {kind.lower(): n for kind in ("PASSED", "SKIPPED") if (n := list(outcomes.values()).count(kind))}
    bad = {name: outcome for name, outcome in outcomes.items() if outcome not in ("PASSED", "SKIPPED")}
    return counts | ({"not passed": bad} if bad else {})


def prepared(shape: str, length: int, essays: int, batch: int, out: Path) -> tuple[Recipe, Encoded, np.ndarray]:
    """Makes an encoder folder of a known shape, and synthetic essays of real essays' lengths."""
    from transformers import AutoConfig, PreTrainedTokenizerFast

    from fb3.data.tokens import encode_texts
    from fb3.demo.synthetic import make_essays
    from fb3.models.from_scratch import SPECIAL, train_tokenizer

    made = make_essays(200, seed=0)
    tokenizer = train_tokenizer([essay.text for essay in made], 8000)
    (out / "encoder").mkdir(parents=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(out / "encoder")
    known = dict(SHAPES[shape])
    given = {"vocab_size": 8000 if shape == "tiny" else VOCABULARY, "pad_token_id": 0, "max_position_embeddings": 512}
    AutoConfig.for_model(known.pop("model_type"), **known, **given).save_pretrained(out / "encoder")
    rng = np.random.default_rng(0)
    words = [essay.text.split() for essay in made]
    wanted = np.minimum(rng.lognormal(np.log(0.8 * length), 0.45, essays), 1.3 * length).astype(int)
    streams = (itertools.chain.from_iterable(words[n % 200 :] + words) for n in range(essays))
    texts = [" ".join(itertools.islice(stream, count)) for stream, count in zip(streams, wanted, strict=True)]
    changes = [f"data.max_length={length}", "model.pooling={kind: mean}", "model.backbone=none/here"]
    recipe = load_recipe("deberta-v3-base", [*changes, f"train.batch_size={batch}", "train.epochs=1"])
    targets = np.array([list(made[n % 200].scores.values()) for n in range(essays)], np.float32)
    return recipe, encode_texts(texts, out / "encoder", recipe.data), targets


def scorer_of(recipe: Recipe, out: Path, on: torch.device) -> torch.nn.Module:
    """A scorer of random weights, made on the device, whose attention is far from uniform."""
    from fb3.models.build import build_scorer

    seed_everything(0)
    with on:
        scorer = build_scorer(recipe, out / "encoder", init="config")
    with torch.no_grad():
        for name, parameter in scorer.encoder.named_parameters():
            if name.endswith(("query_proj.weight", "key_proj.weight")):
                parameter.mul_(4)
        scorer.head.start_at(torch.full((6,), 3.0, device=on))
    return scorer.to(on).eval()


def inputs_of(encoded: Encoded) -> list[dict[str, list[int]]]:
    return [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in encoded.rows]


def padded(rows: list[dict], length: int | None = None) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest row or to a fixed length."""
    longest = length or max(len(row["input_ids"]) for row in rows)
    names = ("input_ids", "attention_mask")
    batch = {n: torch.tensor([row[n] + [0] * (longest - len(row[n])) for row in rows]) for n in names}
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


def by(size: int, rows: list, length: int) -> Iterator[dict[str, torch.Tensor]]:
    return (padded(rows[at : at + size], length) for at in range(0, len(rows), size))


def amounts(shape: str, length: int, small: bool, on: torch.device) -> int:
    """Essays to measure with: about as many seconds for each shape, fewer on a small GPU."""
    if small:
        return 24
    large = torch.cuda.get_device_properties(on).total_memory > 32 * 2**30
    return (512 if large else 128) * 512 // length // (1 if shape.endswith("base") else 3)


def rate_of(work: Path, precision: str) -> float | None:
    """FLOP a second that products reached there, as the first step found."""
    found = work / "device.json"
    rate = json.loads(found.read_text()).get(f"{precision}_tflops") if found.is_file() else None
    return rate and 1e12 * rate


def race(calls: dict[str, Callable[[], Callable]], on: torch.device, weights: dict[str, float]) -> dict[str, dict]:
    """Runs all in turns: the seconds of each, its last result, its peak of GiB; or its error.

    Args:
        calls: by name, a function that prepares a run and returns the function to time.
        on: the device.
        weights: GiB of each one's own weights, which its peak counts; the others' do not.
    """
    found: dict[str, dict[str, Any]] = {who: {"seconds": [], "peak_gib": 0.0} for who in calls}
    begun = time.monotonic()
    for number in range(ROUNDS):
        for who, prepare in calls.items():
            entry = found[who]
            if "failed" in entry:
                continue
            try:
                before = _held(on)
                seconds, entry["out"] = _timed(prepare(), on)
                entry["seconds"].append(seconds)
                entry["peak_gib"] = max(entry["peak_gib"], weights.get(who, 0.0) + _held(on, "max_") - before)
            except Exception as error:  # one that fails leaves the others their figures
                entry["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if number and time.monotonic() - begun > SHARE:  # the first round only warms up
            break
    return found


def _held(on: torch.device, most: str = "") -> float:
    """GiB that tensors take; with `most`, the peak since the last call without."""
    if on.type != "cuda":
        return 0.0
    if not most:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(on)
    return getattr(torch.cuda, f"{most}memory_allocated")(on) / 2**30


def rows_of(
    found: dict[str, dict],
    precision: str,
    essays: int,
    flops: float,
    rate: float | None,
    apart: dict[str, float],
    agree,
) -> list[dict[str, Any]]:
    """The rows of a race: medians without the first round, and ratios to the plain loop."""
    rows, medians = [], {w: statistics.median(e["seconds"][1:]) for w, e in found.items() if "failed" not in e}
    for who, entry in found.items():
        row = {"who": who, "precision": precision}
        if "failed" in entry:
            rows.append(row | {"failed": entry["failed"]})
            continue
        row |= {"seconds": entry["seconds"], "essays_a_second": essays / medians[who], "peak_gib": entry["peak_gib"]}
        row |= {"mfu": flops / medians[who] / rate if rate else None, "apart": apart[who], "agrees": bool(agree(who))}
        rows.append(row | {"ratio": medians["plain"] / medians[who] if "plain" in medians else None})
    return rows


def infer(shape: str, length: int, work: Path, small: bool, write: Write) -> None:
    """Predicts the same tokens with the same weights in three ways."""
    from fb3.prediction.inference_loop import lower_weights, predict
    from fb3.tasks.build import build_task

    on, folder = place(), work / f"infer-{shape}-{length}"
    essays = amounts(shape, length, small, on)
    recipe, encoded, _ = prepared(shape, length, essays, 8, folder)
    ours, task, ids = scorer_of(recipe, folder, on), build_task(recipe), np.arange(essays)
    eager = copy.deepcopy(ours)
    restore_attention(eager.encoder)
    rows = inputs_of(encoded)
    exact = plain_scores(eager, by(4, rows[:EXACT], length), "fp32")
    flops, results = float(forward_flops(eager.encoder.config.to_dict(), encoded.lengths).sum()), []
    for precision in ("bf16",) if on.type == "cpu" else ("fp16", "bf16"):
        low = lower_weights(copy.deepcopy(ours), precision)

        def plain(p=precision):
            return lambda: plain_scores(eager, by(8, rows, length), p)

        def trainer(p=precision):
            return lambda: trainer_scores(eager, rows, padded, 32, p)

        def fb3(p=precision, low=low):
            return lambda: predict(low, task, encoded, ids, precision=p, shown=False).values

        weights = {"plain": _weights(eager), "trainer": _weights(eager), "fb3": _weights(low)}
        found = race({"plain": plain, "trainer": trainer, "fb3": fb3}, on, weights)
        apart = {w: _apart(e["out"], exact) for w, e in found.items() if "failed" not in e}
        most = max(LEAST, TIMES * _rounded(eager, rows, length, exact, precision))
        results += rows_of(found, precision, essays, flops, rate_of(work, precision), apart, _below(apart, most))
        write({"essays": essays, "tokens": float(encoded.lengths.mean()), "rows": results})
        del low


def _rounded(eager: torch.nn.Module, rows: list[dict], length: int, exact: np.ndarray, precision: str) -> float:
    """How far off transformers' own is with its weights lowered to a precision, like fb3's."""
    low = copy.deepcopy(eager)
    low.encoder.to(DTYPES[precision])
    on = next(low.parameters()).device
    return _apart(plain_scores(low, by(4, rows[:EXACT], length), precision if on.type == "cuda" else "fp32"), exact)


def _weights(scorer: torch.nn.Module) -> float:
    """GiB of a scorer's weights."""
    return sum(p.nbytes for p in scorer.parameters()) / 2**30


def _apart(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference of a score, in standard deviations of the essays' scores."""
    return float(np.abs(found[: len(exact)] - exact).max() / exact.std(0).max())


def _below(apart: dict[str, float], most: float) -> Callable[[str], bool]:
    return lambda who: apart[who] <= most  # False for NaN too


def train(shape: str, length: int, work: Path, small: bool, write: Write) -> None:
    """Trains an epoch over the same essays from the same weights in three ways; the first round warms up."""
    on, folder = place(), work / f"train-{shape}-{length}"
    essays = max(16, amounts(shape, length, small, on) // 4)
    recipe, encoded, targets = prepared(shape, length, essays, 16 if length < 1024 else 8, folder)
    start = scorer_of(recipe, folder, on).cpu()
    flops = 3 * float(forward_flops(start.encoder.config.to_dict(), encoded.lengths).sum())
    results = []
    for precision in ("bf16",) if on.type == "cpu" else ("fp16", "bf16"):
        given = (recipe, start, encoded, targets, length, precision, on, folder)
        found = race({who: partial(_epoch, who, *given) for who in ("plain", "trainer", "fb3")}, on, {})
        ends = {who: entry["out"]() for who, entry in found.items() if "failed" not in entry}
        loss, way = ends.get("plain", (np.nan, np.nan))
        apart = {who: abs(mine - loss) / loss for who, (mine, _) in ends.items()}
        near, moved = _below(apart, LOSSES_APART), {who: gone / way for who, (_, gone) in ends.items()}
        fine = partial(_trained, near=near, moved=moved)
        results += rows_of(found, precision, essays, flops, rate_of(work, precision), apart, fine)
        write({"essays": essays, "tokens": float(encoded.lengths.mean()), "rows": results})


def _trained(who: str, near: Callable[[str], bool], moved: dict[str, float]) -> bool:
    """Whether mean loss and, roughly, the head's way are the plain loop's: a loop that takes no step is the fastest."""
    return near(who) and MOVED <= moved[who] <= 1 / MOVED


def _epoch(who, recipe, start, encoded, targets, length, precision, on, folder) -> Callable[[], Callable]:
    """Prepares an epoch. Returns a function that runs it and returns another, for its mean loss and the head's way."""
    from fb3.data.batches import steps_per_epoch
    from fb3.tasks.build import build_task
    from fb3.training.optimizer import build_optimizer
    from fb3.training.schedule import build_schedule

    seed_everything(0)
    scorer = copy.deepcopy(start).to(on).train()
    if who != "fb3":
        restore_attention(scorer.encoder)
    task, batch, clip = build_task(recipe).to(on), recipe.train.batch_size, recipe.optimizer.clip
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=precision == "fp16")
    schedule = build_schedule(optimizer, recipe.schedule, steps := steps_per_epoch(len(targets), batch, 1))
    rows = [row | {"labels": truth.tolist()} for row, truth in zip(inputs_of(encoded), targets, strict=True)]

    def plain() -> list[torch.Tensor]:
        order = [rows[row] for row in np.random.default_rng(0).permutation(len(rows))]
        batches = (each | {"targets": each.pop("labels")} for each in by(batch, order, length))
        return plain_training(scorer, batches, task, optimizer, schedule, clip, precision)

    def trainer() -> list[torch.Tensor]:
        return trainer_training(scorer, rows, padded, task, optimizer, schedule, clip, precision, batch)

    ours = partial(_by_fb3, recipe, scorer, task, optimizer, schedule, encoded, targets, precision, folder, steps)
    go = {"plain": plain, "trainer": trainer, "fb3": ours}[who]
    before = {name: p.detach().float().cpu().clone() for name, p in scorer.head.named_parameters()}

    def timed() -> Callable[[], tuple[float, float]]:
        losses = go()
        gone = [(p.detach().float().cpu() - before[name]).norm() for name, p in scorer.head.named_parameters()]
        mean = torch.stack([loss.float() for loss in losses]).mean()
        return lambda: (float(mean), float(torch.stack(gone).norm()))

    return timed


def _by_fb3(
    recipe, scorer, task, optimizer, schedule, encoded, targets, precision, folder, steps
) -> list[torch.Tensor]:
    """fb3's own loop, without evaluations and saves."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from fb3.training.loop import Hooks, Learner, Loop, TrainingData
    from fb3.training.run_log import RunLog

    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision, cpu=not torch.cuda.is_available()
    )
    log, losses = RunLog(folder / "log.jsonl", False, lambda values, step: None), []
    log.window = lambda advance, **values: losses.append(torch.tensor(values["mean_loss"]))
    learner = Learner(scorer, task, optimizer, schedule)
    data = TrainingData(0, [np.arange(len(targets))], encoded, targets, [steps], seed=0)
    Loop(accelerator, recipe, learner, data, Hooks(lambda step: None, lambda loop: None), log).run()
    return losses[-1:]  # the mean of all


def startup(work: Path, small: bool, write: Write) -> None:
    """The whole `fb3 infer` on a tiny bundle, as a user calls it, again and again."""
    from fb3.bundles.packing import write_bundle
    from fb3.demo.synthetic import write_competition
    from fb3.training.run import train as train_run

    write_competition(work / "data", 24, 8, seed=1)
    changes = ["train.epochs=1", "folds.count=2", "data.max_length=128"]
    run = train_run(load_recipe("tiny", changes), work / "data", work / "run", folds=[0])
    bundle, out = write_bundle([run.path], work / "bundle").path, work / "submission.csv"
    call = [sys.executable, "-m", "fb3", "infer", bundle, "--data", work / "data", "--out", out, "--strict"]
    seconds = []
    for _ in range(1 if small else 3):
        seconds.append(_timed(lambda: subprocess.run(call, check=True, cwd=work), torch.device("cpu"))[0])
        phases = json.loads(out.with_suffix(".report.json").read_text())["phases"]
        write({"whole_s": min(seconds), "all_s": seconds, "phases": phases})
