#!/usr/bin/env python3
"""Measures and tests on a GPU all of fb3 that needs one, with one command, into one file.

    python benchmarks/gpu.py --out FILE.json [--minutes 8] [--steps NAME ...] [--small]

Needs this repository (nothing of it has to be installed), no data and no network, and these packages: torch with CUDA,
transformers, tokenizers, safetensors, accelerate, numpy, pandas, scikit-learn, iterative-stratification, pydantic (with
pydantic-core, annotated-types, typing-inspection), PyYAML, typer, rich, packaging, pytest, hypothesis.

Steps, in order of worth: the device and what its products and memory reach; the tests that need CUDA; inference and
training of DeBERTa-v3's shapes with random weights, by the notebooks' loop, transformers' Trainer and fb3; start-up.
Each is a process under its own clock: a hang, a crash or a lack of memory costs that step alone. FILE.json is written
whole after each, with the end of the step's output; all of it stands beside, in FILE.STEP.txt. --small, and any machine
without CUDA, takes seconds: tiny shapes, on the CPU, to see that it runs.
"""

import argparse
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for a repository that is not installed
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

BASE, LARGE, TINY = "deberta-v3-base", "deberta-v3-large", "tiny"
# Seconds that a step may take at most. The first of a name is the function in gpu_steps, the rest are its arguments.
STEPS = {
    ("device",): 60,
    ("tests", "tests/test_gpu.py"): 150,
    ("infer", BASE, 512): 60,
    ("train", BASE, 512): 60,
    ("infer", LARGE, 512): 75,
    ("infer", BASE, 1024): 60,
    ("train", LARGE, 512): 75,
    ("infer", LARGE, 1024): 75,
    ("train", BASE, 1024): 60,
    ("train", LARGE, 1024): 75,
    ("startup",): 90,
}
SMALL = dict.fromkeys(
    [("device",), ("tests", "tests/test_gpu.py"), ("infer", TINY, 64), ("train", TINY, 64), ("startup",)], 240
)
BREAK = "FB3_GPU_BREAK"  # STEP=raise, crash or hang, several with commas: how the tests see that the others stand
LEAST = 5.0  # seconds: with less left, no step is begun


def name_of(step: tuple) -> str:
    return "-".join(Path(str(part)).stem.removeprefix("deberta-") for part in step)


def in_process(step: tuple, work: Path, log: Path, small: bool) -> None:
    """Runs a step in a process of its own; its output goes to the file `log`, its results to another as they come."""
    os.setsid()  # a process group, so that its children can be killed with it
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    wished = dict(each.split("=") for each in os.environ.get(BREAK, "").split(",") if each)
    match wished.get(name_of(step)):
        case "raise":
            raise RuntimeError(f"{BREAK} wishes so")
        case "crash":
            faulthandler.disable()  # a test's own would write pages into its log
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(3600)
    import gpu_steps

    gpu_steps.run(step, work, work / f"{name_of(step)}.json", small)


def run(step: tuple, work: Path, log: Path, small: bool, context: Any, seconds: float) -> dict[str, Any]:
    """A step's status, its results, even partial ones, and the end of its output, all of which goes to `log`."""
    process, start = context.Process(target=in_process, args=(step, work, log, small)), time.monotonic()
    process.start()
    process.join(seconds)
    status = "done"
    if process.is_alive():
        status = f"stopped after {seconds:.0f} s"
        end(process.pid)
        process.join()
    elif process.exitcode:
        code = process.exitcode
        status = f"ended by {signal.Signals(-code).name}" if code < 0 else "failed"
    found = work / f"{name_of(step)}.json"
    return {
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "found": json.loads(found.read_text()) if found.is_file() else None,
        "said": log.read_text(errors="replace")[-4000:] if log.is_file() else "",
    }


def end(pid: int) -> None:
    """Kills a step and its children."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet
        os.kill(pid, signal.SIGKILL)


def write(results: dict[str, Any], out: Path) -> None:
    """Writes the results so that the file is always whole."""
    aside = out.with_name(f".{out.name}.part")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(out)


def lines_of(name: str, result: dict[str, Any]) -> list[str]:
    """The table's lines for a step."""
    lines, found = [f"{name:<24}{result['status']}, {result['seconds']} s"], result["found"] or {}
    for row in found.pop("rows", []):
        if "failed" in row:
            lines.append(f"    {row['who']:<10}{row['precision']:<6}{row['failed'][:90]}")
            continue
        cells = [f"{row['essays_a_second']:>9.1f} essays/s", f"{row['ratio']:>6.2f}x" if row["agrees"] else " apart!"]
        cells += [f"MFU {row['mfu']:>4.0%}" if row["mfu"] else "", f"{row['peak_gib']:>6.1f} GiB"]
        lines.append(f"    {row['who']:<10}{row['precision']:<6}{'  '.join(cells)}  off {row['apart']:.1e}")
    for key, value in found.items():
        lines.append(f"    {key}: {f'{value:.4g}' if isinstance(value, float) else value}")
    if result["status"] != "done":
        lines += [f"    | {line[:150]}" for line in result["said"].splitlines()[-4:]]
    return lines


def main() -> None:
    """Runs the steps that the time allows; exit status 1 where one did not come to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="for all of it; a step that would not fit is cut off"
    )
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--small", action="store_true", help="seconds, on any machine")
    arguments = parser.parse_args()
    ends = time.monotonic() + 60 * arguments.minutes
    known = list(dict.fromkeys(map(name_of, [*STEPS, *SMALL])))
    if unknown := set(arguments.steps or []) - set(known):
        parser.error(f"--steps: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    import torch

    gpu = torch.cuda.is_available()
    small = arguments.small or not gpu
    if not gpu:  # the steps inherit what takes long to import; a process with CUDA cannot be forked
        import fb3.training.run  # noqa: F401
    context = multiprocessing.get_context("spawn" if gpu else "fork")
    table = SMALL if small else STEPS
    chosen = {name_of(step): step for step in table}
    results: dict[str, Any] = {"small": small, "minutes": arguments.minutes, "steps": {}}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        for name, step in chosen.items():
            if arguments.steps and name not in arguments.steps:
                continue
            left = ends - time.monotonic()
            result = {"status": f"no time: {max(left, 0):.0f} s left", "seconds": 0.0, "found": None, "said": ""}
            if left > LEAST:
                log = arguments.out.resolve().with_suffix(f".{name}.txt")
                result = run(step, Path(folder), log, small, context, min(table[step], left))
            results["steps"][name] = result
            write(results, arguments.out)
            print("\n".join(lines_of(name, json.loads(json.dumps(result)))), flush=True)
    sys.exit(any(result["status"] != "done" for result in results["steps"].values()))


if __name__ == "__main__":
    main()
