"""Two gloo processes on the CPU give the score of one at the same effective batch."""

import json
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
import torch

from fb3.pseudo_labels.pseudo_folder import label_essays
from tests.conftest import ROOT, TINY
from tests.training.witness import watch

OVERRIDES = [
    "train.precision=fp32",
    "train.epochs=2",
    "train.batch_size=7",
    "train.log_every_steps=1",
    "tricks=[{kind: fgm}, {kind: ema, decay: 0.8}]",
]


TRAIN = ["-m", "fb3", "train", "tiny", "--data", "{data}", "--out", "{out}"]
WITNESS = ["-m", "tests.training.witness", "{data}", "{out}"]


def call(prefix, competition, out, *options, program=TRAIN, overrides=OVERRIDES):
    command = [*prefix, *(word.format(data=competition, out=out) for word in program), *overrides]
    return subprocess.run(
        [*command, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def scored(prefix, competition, out, *options, overrides=OVERRIDES):
    done = finish(call(prefix, competition, out, *options, overrides=overrides))
    return json.loads((out / "scores.json").read_text()), done.stderr


def finish(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def launcher():
    """The command prefix of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # --multi_gpu names the launcher of several processes; on a machine without a GPU they are gloo processes.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]
    return [*launch, port]


def steps(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


WAITS = """
import torch
from pathlib import Path
from fb3.recipe import load_recipe
from fb3.training.processes import open_accelerator
open_accelerator(load_recipe("tiny"), Path("."))
print("waits", torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout)
"""


def test_processes_wait_for_hours_of_pictures(competition, tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    done = finish(call(launcher(), competition, tmp_path, program=[str(tmp_path / "waits.py")], overrides=[]))
    assert done.stdout.count("waits 12:00:00") == 2


def test_two_processes_score_like_one(competition, tmp_path):
    one, _ = scored([sys.executable], competition, tmp_path / "one")
    two, said = scored(launcher(), competition, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert two["score"] == pytest.approx(one["score"], abs=1e-3)
    assert two["essays"] == one["essays"] == 60
    assert said.count("CV ") == 1
    # Adam hides a wrong scale of the gradients; their norms and the losses do not.
    for alone, shared in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=2e-2)


def test_two_processes_stop_together_and_go_on(competition, tmp_path):
    fold, noise = ("--folds", "0"), "model.dropout=0.1"  # each process draws masks of its own
    whole, _ = scored(launcher(), competition, tmp_path / "whole", noise, *fold)
    stopped = call(launcher(), competition, tmp_path / "run", noise, *fold, "--stop-after", "0s")
    assert "the time is up: fold 0 is saved after step 5 of 10" in stopped.stderr, stopped.stderr[-3000:]
    alone = call([sys.executable], competition, tmp_path / "run", noise, *fold)
    assert "saved by 2 processes, here are 1; launch as many" in alone.stderr
    resumed, said = scored(launcher(), competition, tmp_path / "run", noise, *fold)
    assert "goes on after step 5 of 10" in said
    assert resumed == whole
    losses = [[step["loss"] for step in steps(tmp_path / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1], "each goes on with its own masks"
    assert (tmp_path / "run" / "oof.csv").read_bytes() == (tmp_path / "whole" / "oof.csv").read_bytes()


def test_two_processes_share_the_essays_without_scores(competition, tmp_path):
    """With every token masked the copies do not depend on who draws them; all batches are of even size."""
    data = tmp_path / "data"
    data.mkdir()
    table = pd.read_csv(competition / "train.csv", dtype=str).iloc[:24]
    table.assign(fold=[n % 2 for n in range(24)]).to_csv(data / "train.csv", index=False)
    uda = f"{{file: {competition / 'test.csv'}, augment: {{mask: 0.9999999}}, batch_size: 4, weight: 3.0}}"
    overrides = [*OVERRIDES, "train.batch_size=4", f"task.uda={uda}", "--folds", "0"]
    scored([sys.executable], data, tmp_path / "one", overrides=overrides)
    scored(launcher(), data, tmp_path / "two", overrides=overrides)
    assert len(steps(tmp_path / "one")) == 6
    for alone, shared in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=2e-2)


USES = ["{use: mix}", "{use: stage, epochs: 1}", "{use: distil}"]


@pytest.mark.parametrize("use", USES)
def test_two_processes_learn_pseudo_labels_like_one(use, run, competition, tmp_path):
    more = pd.read_csv(competition / "test.csv", dtype=str).assign(text_id=[f"u{n}" for n in range(20)])
    more.to_csv(tmp_path / "more.csv", index=False)
    label_essays(run, tmp_path / "labels", tmp_path / "more.csv")
    settings = [*TINY, *OVERRIDES, f"pseudo={use}", f"pseudo.folder={tmp_path / 'labels'}"]
    scored([sys.executable], competition, tmp_path / "one", "--folds", "0", overrides=settings)
    scored(launcher(), competition, tmp_path / "two", "--folds", "0", overrides=settings)
    for alone, shared in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=2e-2)


BERT = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16, type_vocab_size: 2}"


def test_processes_draw_for_themselves_where_a_step_has_several_passes(competition, tmp_path):
    """A BERT looks its positions up in a buffer. All essays are the same, so that draws alone tell batches apart."""
    data = tmp_path / "data"
    data.mkdir()
    table = pd.read_csv(competition / "train.csv", dtype=str).iloc[:16]
    table.assign(full_text=table["full_text"][0], fold=[n % 2 for n in range(16)]).to_csv(data / "train.csv")

    def overrides(size):
        uda = f"task.uda={{file: {data / 'train.csv'}, augment: {{mask: 0.3}}, batch_size: {size}}}"
        encoder = [f"model.scratch={{model_type: bert, config: {BERT}}}", "model.dropout=0.3", "data.max_length=64"]
        few = ["train.precision=fp32", "train.epochs=1", f"train.batch_size={size}"]
        return [*encoder, *few, "task.r_drop={}", "data.augment={mask: 0.3}", uda]

    finish(call(launcher(), data, tmp_path / "two", program=WITNESS, overrides=overrides(4)))
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt") for rank in (0, 1))
    alone = watch(data, tmp_path / "one", overrides(2))
    passes = 2 * ["R-Drop's first", "its second", "the essays without scores", "their copies"]
    for what in ("seen", "kept"):
        assert len(first[what]) == len(second[what]) == len(passes)
        for one, other, single, name in zip(first[what], second[what], alone[what], passes, strict=False):
            assert torch.equal(one, single), "the first process draws as one alone does"
            assert torch.equal(one, other) == (what == "seen" and name == "the essays without scores"), (what, name)
