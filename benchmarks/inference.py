#!/usr/bin/env python3
"""Times fb3's inference and others' with the same fold and essays, in turns, each in a fresh process.

    python benchmarks/inference.py RUN --data DIR [--kinds plain,trainer,sentence,fb3,openvino,onnx] [--essays N]
    python benchmarks/inference.py RUN --data DIR --shape deberta-v3-base     # random weights, RUN's tokenizer

| kind | |
|---|---|
| plain | the notebooks' loop: padded to max_length, fp32 (fp16 autocast on a GPU), batches of 8, `torch.no_grad` |
| trainer | transformers' Trainer.predict, bf16 where the chip has it, padded by batch, essays sorted by length before |
| sentence | sentence-transformers' `encode`: sorted by length, padded by batch, encoder in bf16 where the chip has it |
| fb3 | `predict.backend: torch`, as `fb3 infer` runs it |
| int8 | the same, packed by `build_dataset.py --int8` |
| openvino, onnx | the other backends; optional extras |

A ratio counts only where the outputs agree within the precision. MFU is of real tokens, against the largest rate of a
bf16 matrix product in the same round.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from peers import SHAPES, peak, plain_scores, restore_attention, trainer_scores

KINDS = ("plain", "trainer", "sentence", "fb3", "int8", "openvino", "onnx")
TOLERANCE = 0.03  # bf16 keeps 8 bits: about 0.4 % of an encoder's state, less of a score
TOLERANCE_INT8 = 0.15  # of single scores; what counts there is the CV, which the packing holds within 0.0005


def worker(kind: str, run: Path, arguments: argparse.Namespace) -> None:
    """One process: loads, tokenises, predicts; writes values and seconds."""
    from fb3.data.essays import read_essays
    from fb3.recipe import load_recipe

    start = time.perf_counter()
    recipe = load_recipe(run / "recipe.yaml")
    table = read_essays(arguments.data / "train.csv", recipe.data).iloc[: arguments.essays]
    others = {"plain": plain, "trainer": partial(trainer, batch=arguments.batch)}
    others["sentence"] = partial(sentence, batch=arguments.batch, exported=arguments.exported)
    np.save(arguments.values, others.get(kind, backend)(kind, run, recipe, table))
    print(json.dumps({"seconds": time.perf_counter() - start}))


def backend(kind, run, recipe, table):
    """As `fb3 infer` runs a fold."""
    from fb3.prediction.fold_prediction import predict_fold
    from fb3.prediction.member_inputs import encode
    from fb3.runs.run_folder import Member
    from fb3.system.devices import pick_device

    settings = recipe.predict.model_copy(update={"backend": kind if kind in ("openvino", "onnx") else "torch"})
    member = Member("run", run, recipe.model_copy(update={"predict": settings}), [min(run.glob("fold*[0-9]"))])
    ids = table[recipe.data.id_column].to_numpy()
    return predict_fold(member, 0, encode(member, table), ids, str(pick_device()), shown=False).values


def scorer_of(run, recipe):
    """The fold in fp32, with transformers' own attention."""
    from fb3.runs.checkpoint import load_fold
    from fb3.system.devices import pick_device

    scorer = load_fold(recipe, run / "encoder", min(run.glob("fold*[0-9]"))).to(pick_device())
    restore_attention(scorer.encoder)
    return scorer


def plain(kind, run, recipe, table):
    """The notebooks' loop, which tokenises batch by batch."""
    from transformers import AutoTokenizer

    scorer = scorer_of(run, recipe)
    tokenizer = AutoTokenizer.from_pretrained(run / "encoder", local_files_only=True)
    texts = table[recipe.data.text_column].tolist()
    limits = {"padding": "max_length", "truncation": True, "max_length": recipe.data.max_length}
    batches = (tokenizer(texts[at : at + 8], return_tensors="pt", **limits) for at in range(0, len(texts), 8))
    return plain_scores(scorer, batches, "fp16" if next(scorer.parameters()).is_cuda else "fp32")


def trainer(kind, run, recipe, table, batch):
    """transformers' Trainer."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from fb3.system.devices import pick_device, pick_precision

    tokenizer = AutoTokenizer.from_pretrained(run / "encoder", local_files_only=True)
    encoded = tokenizer(table[recipe.data.text_column].tolist(), truncation=True, max_length=recipe.data.max_length)
    rows = [{name: encoded[name][row] for name in ("input_ids", "attention_mask")} for row in range(len(table))]
    precision = "bf16" if pick_precision("auto", pick_device()) == "bf16" else "fp32"
    return trainer_scores(scorer_of(run, recipe), rows, DataCollatorWithPadding(tokenizer), batch, precision)


def sentence(kind, run, recipe, table, batch, exported):
    """sentence-transformers: its own encoder, then the fold's pooling and head as one of its modules."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Module, Transformer

    from fb3.runs.checkpoint import load_fold
    from fb3.system.devices import pick_device, pick_precision

    device = pick_device()
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(pick_precision("auto", device), torch.float32)
    scorer = load_fold(recipe, run / "encoder", min(run.glob("fold*[0-9]")))
    del scorer.encoder  # costs nothing: its weights are memory-mapped, and never read
    scorer.to(device)

    class Scores(Module):
        """Pooling and head; the scorer is no submodule, since those are cast to bf16 with the encoder."""

        def forward(self, features):
            layers = features.get("all_layer_embeddings", ())
            states = [layer.float() for layer in layers] or features["token_embeddings"].float()
            pooled = scorer.pooling(states, scorer.pooling.token_weights(features))
            features["sentence_embedding"] = scorer.head(pooled)
            return features

        def save(self, *args, **kwargs):
            """The base class wants one; the benchmark saves nothing."""

    encoder = Transformer(
        str(exported),
        max_seq_length=recipe.data.max_length,
        model_kwargs={"dtype": precision},
        config_kwargs={"output_hidden_states": scorer.reads == "layers"},
    )
    model = SentenceTransformer(modules=[encoder, Scores()], device=str(device))
    texts = table[recipe.data.text_column].tolist()
    return model.encode(texts, batch_size=batch, show_progress_bar=False, convert_to_numpy=True)


def export(run: Path, out: Path) -> Path:
    """The first fold's encoder as `from_pretrained` reads it; before the clock runs."""
    from fb3.recipe import load_recipe
    from fb3.runs.checkpoint import load_fold

    recipe = load_recipe(run / "recipe.yaml")
    scorer = load_fold(recipe, run / "encoder", min(run.glob("fold*[0-9]")))
    if scorer.reads == "pooler" or recipe.data.windows or recipe.data.text.statistics or recipe.model.stitch:
        sys.exit("sentence: reads token states of one encoder only; leave this kind out")
    restore_attention(scorer.encoder)
    shutil.copytree(run / "encoder", out)
    scorer.encoder.save_pretrained(out)
    return out


def random_run(shape: str, run: Path, out: Path) -> Path:
    """A run folder of random weights in a known shape, with the run's tokenizer and all else of its recipe."""
    from transformers import AutoConfig

    from fb3.models.build import build_scorer
    from fb3.recipe import load_recipe
    from fb3.runs.checkpoint import save_fold
    from fb3.system.seeds import seed_everything

    recipe = load_recipe(run / "recipe.yaml", ["model.pooling={kind: mean}", "data.text.statistics=false"])
    shutil.copytree(run / "encoder", out / "encoder")
    before = json.loads((run / "encoder" / "config.json").read_text())
    kept = {name: before[name] for name in ("vocab_size", "pad_token_id")}
    known = dict(SHAPES[shape])
    AutoConfig.for_model(known.pop("model_type"), **known, **kept).save_pretrained(out / "encoder")
    (out / "recipe.yaml").write_text(recipe.to_yaml())
    seed_everything(0)
    save_fold(out / "fold0", build_scorer(recipe, out / "encoder", init="config"), {})
    return out


def with_scales(run: Path, data: Path, out: Path) -> Path:
    """A run folder whose first fold has int8 scales."""
    from fb3.bundles.int8_scales import ESSAYS, measure_scales
    from fb3.data.essays import read_essays
    from fb3.recipe import load_recipe
    from fb3.runs.checkpoint import save_scales
    from fb3.runs.run_folder import Member
    from fb3.system.devices import cpu_has_int8, pick_device

    fold = min(run.glob("fold*[0-9]"))
    shutil.copytree(run / "encoder", out / "encoder")
    shutil.copytree(fold, out / fold.name)
    recipe = load_recipe(run / "recipe.yaml", ["predict.precision=auto", "predict.backend=auto"])
    (out / "recipe.yaml").write_text(recipe.to_yaml())
    if not cpu_has_int8() or str(pick_device()) != "cpu":
        sys.exit("int8: only on a CPU with int8 instructions")
    essays = read_essays(data / "train.csv", recipe.data).set_index(recipe.data.id_column).iloc[-ESSAYS:]
    save_scales(out / fold.name, measure_scales(Member("run", out, recipe, [out / fold.name]), out / fold.name, essays))
    return out


def flops_of(run: Path, data: Path, essays: int) -> tuple[float, float]:
    """FLOPs of all essays without padding, and the mean tokens an essay."""
    from fb3.data.essays import read_essays
    from fb3.data.tokens import encode_texts
    from fb3.models.flops import forward_flops
    from fb3.recipe import load_recipe

    recipe = load_recipe(run / "recipe.yaml")
    table = read_essays(data / "train.csv", recipe.data).iloc[:essays]
    lengths = encode_texts(table[recipe.data.text_column].tolist(), run / "encoder", recipe.data).lengths
    config = json.loads((run / "encoder" / "config.json").read_text())
    return float(forward_flops(config, lengths).sum()), float(lengths.mean())


def measure(kind: str, run: Path, arguments: argparse.Namespace) -> tuple[dict, np.ndarray]:
    """Runs a worker in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "values.npy"
        command = [sys.executable, __file__, str(run), "--data", str(arguments.data)]
        command += ["--essays", str(arguments.essays), "--worker", kind, "--values", str(out)]
        command += ["--batch", str(arguments.batch), "--exported", str(arguments.exported)]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        whole = time.perf_counter() - start
        return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}, np.load(out)


def table_of(rounds: list[dict], kinds: list[str], flops: float) -> tuple[list[str], bool]:
    """The lines to print, and whether all outputs agree."""
    lines, agree = [f"{'':<10}{'whole, s':>10}{'ratio':>8}{'MFU':>7}{'apart':>9}"], True
    for kind in kinds:
        whole = statistics.median(r[kind]["whole"] for r in rounds)
        ratio = statistics.median(r[kinds[0]]["whole"] / r[kind]["whole"] for r in rounds)
        mfu = statistics.median(flops / r[kind]["seconds"] / r["peak"] for r in rounds)
        apart = max(r[kind]["apart"] for r in rounds)
        agree &= apart <= (TOLERANCE_INT8 if kind == "int8" else TOLERANCE)
        lines.append(f"{kind:<10}{whole:>10.1f}{ratio:>7.2f}x{mfu:>7.0%}{apart:>9.4f}")
    return lines, agree


def main() -> None:
    """Runs all kinds in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder; its first fold is used")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FB3_DATA", "../shared/data/fb3")))
    parser.add_argument("--kinds", default="plain,fb3", help=f"of {', '.join(KINDS)}; the first is compared with")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of the run's")
    parser.add_argument("--essays", type=int, default=10**9, help="only the first so many")
    parser.add_argument("--batch", type=int, default=8, help="essays at once, of trainer and sentence")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--values", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--exported", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.run, arguments)
        return
    kinds, rounds = arguments.kinds.split(","), []
    if "sentence" in kinds and not importlib.util.find_spec("sentence_transformers"):
        sys.exit("sentence: not installed; pip install 'sentence-transformers>=6'")
    with tempfile.TemporaryDirectory() as folder:
        run = random_run(arguments.shape, arguments.run, Path(folder) / "run") if arguments.shape else arguments.run
        runs = dict.fromkeys(kinds, run)
        if "int8" in kinds:
            runs["int8"] = with_scales(run, arguments.data, Path(folder) / "int8")
        if "sentence" in kinds:
            arguments.exported = export(run, Path(folder) / "exported")
        flops, tokens = flops_of(run, arguments.data, arguments.essays)
        for number in range(arguments.rounds):
            found, truth = {"peak": peak()}, None
            for kind in kinds:
                measured, values = measure(kind, runs[kind], arguments)
                truth = values if truth is None else truth
                found[kind] = {**measured, "apart": float(np.abs(values - truth).max())}
                print(f"round {number + 1}: {kind} {measured['whole']:.1f} s", file=sys.stderr)
            rounds.append(found)
    peaks = statistics.median(r["peak"] for r in rounds) / 1e12
    print(f"{len(truth)} essays, {tokens:.0f} tokens each; bf16 products reach {peaks:.2f} TFLOP/s")
    lines, agree = table_of(rounds, kinds, flops)
    print("\n".join(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps({"essays": len(truth), "flops": flops, "rounds": rounds}, indent=1) + "\n")
    if not agree:
        sys.exit("outputs differ by more than their precision: those ratios do not count")


if __name__ == "__main__":
    main()
