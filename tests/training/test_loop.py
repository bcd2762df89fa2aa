"""The loop on a tiny real encoder: what accumulation, schedules, tricks and a NaN do to it."""

import json
from contextlib import suppress
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from fb3.data.essays import read_essays
from fb3.data.folds import make_folds
from fb3.errors import Fb3Error, Stopped
from fb3.models.build import build_scorer
from fb3.models.layer_stack import layer_stack
from fb3.models.scorer import Scorer
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import read_weights
from fb3.targets.build import target_of
from fb3.training import loop as loop_module
from fb3.training.micro_batching import MicroBatching
from fb3.training.optimizer import build_optimizer
from fb3.training.run import train

BASE = ["train.precision=fp32", "train.epochs=1", "data.sample=24", "train.log_every_steps=1"]


def events(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def weights(run):
    return read_weights(run / "fold0" / "model.safetensors")


WEIGHED = [
    "task={kind: classification, class_weights: {kind: balanced}}",
    "data.target_columns=[cohesion]",
    "metric=log_loss",
    "data.weight_column=syntax",
]


@pytest.mark.parametrize("more", [[], WEIGHED], ids=["scores", "weighed labels"])
def test_accumulation_is_one_step_on_the_whole_batch(more, competition, tmp_path, monkeypatch):
    """Two batches of 3 give the step of one batch of 6, when they hold the same essays."""
    base = [*BASE, *more]
    whole = train(load_recipe("tiny", [*base, "train.batch_size=6"]), competition, tmp_path / "a", folds=[0])
    plain = loop_module.training_batches

    def halves(lengths, rows, size, *which):
        return [part for batch in plain(lengths, rows, 6, *which) for part in (batch[:3], batch[3:])]

    monkeypatch.setattr(loop_module, "training_batches", halves)
    recipe = load_recipe("tiny", [*base, "train.batch_size=3", "train.accumulation=2"])
    split = train(recipe, competition, tmp_path / "b", folds=[0])
    assert len(events(whole.path, "step")) == len(events(split.path, "step")) == 2
    for one, two in zip(events(whole.path, "step"), events(split.path, "step"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-2)


@pytest.fixture
def scarce(monkeypatch):
    """A memory that holds so many essays at a time, backward pass included; more where activations are recomputed."""

    def holds(essays, at="forward", recomputed=0):
        real, large = Scorer.forward, count(1)

        def forward(self, batch):
            out = real(self, batch)
            room = max(essays, recomputed * self.encoder.is_gradient_checkpointing)
            if self.training and len(batch["row"]) > room and (at != "a later forward" or next(large) % 2 == 0):
                if at != "backward":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                out.scores.register_hook(fails)
            return out

        def fails(gradient):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(Scorer, "forward", forward)

    return holds


@pytest.mark.parametrize("at", ["forward", "backward", "a later forward"])
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["train.batch_size=3", "train.accumulation=2"],
        ["tricks=[{kind: fgm}, {kind: ema, decay: 0.5}]"],
        ["tricks=[{kind: pgd, steps: 2}]"],
        ["tricks=[{kind: awp, from_epoch: 0, form: perturb_first, epsilon: 0.1}]"],
    ],
    ids=["plain", "accumulation", "fgm and ema", "pgd", "awp"],
)
def test_out_of_memory_computes_the_same_batch_in_parts(competition, tmp_path, capsys, scarce, more, at):
    """Tricks perturb along the whole batch's gradient, in parts too."""
    recipe = load_recipe("tiny", [*BASE, "train.batch_size=6", *more])
    whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    scarce(2, at)
    parted = train(recipe, competition, tmp_path / "parted", folds=[0])
    told = [event["essays"] for event in events(parted.path, "out_of_memory")]
    assert told == ([2] if recipe.train.batch_size == 3 else [3, 2])
    assert "out of memory with 3 essays at a time; from here on 2 at a time" in capsys.readouterr().err
    for one, two in zip(events(whole.path, "step"), events(parted.path, "step"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    assert parted.score.overall == pytest.approx(whole.score.overall, abs=1e-4)


@pytest.mark.parametrize(
    ("essays", "loss", "message"),
    [
        (0, "mse", r"step 1: out of memory with 1 essays at a time; try model\.gradient_checkpointing"),
        (
            2,
            "mcrmse",
            r"with 6 essays at a time, and the loss needs whole batches; try a smaller train\.batch_size",
        ),
    ],
)
def test_memory_that_parts_do_not_help_is_told(competition, tmp_path, scarce, essays, loss, message):
    scarce(essays)
    with pytest.raises(Fb3Error, match=message):
        train(load_recipe("tiny", [*BASE, "train.batch_size=6", f"task.loss={loss}"]), competition, tmp_path / "run")


def test_a_resumed_run_remembers_the_micro_batches(competition, tmp_path, scarce, capsys):
    recipe = load_recipe("tiny", [*BASE, "train.batch_size=6", "train.save_every_steps=1"])
    scarce(2)
    whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    with suppress(Stopped):
        train(recipe, competition, tmp_path / "run", folds=[0], stop_after="0.01s")
    resumed = train(recipe, competition, tmp_path / "run", folds=[0])
    assert [event["step"] for event in events(resumed.path, "resume")] == [1]
    assert len(events(resumed.path, "out_of_memory")) == len(events(whole.path, "out_of_memory")) == 2
    for name, tensor in weights(whole.path).items():
        assert torch.equal(tensor, weights(resumed.path)[name]), name


AUTO = "model.gradient_checkpointing=auto"


@pytest.mark.parametrize("at", ["forward", "backward"])
@pytest.mark.parametrize(
    ("recomputed", "told"), [(6, [(True, 6)]), (2, [(True, 6), (True, 3), (True, 2)])], ids=["enough", "not enough"]
)
@pytest.mark.parametrize("more", [["task.loss=mse"], ["tricks=[{kind: pgd, steps: 2}, {kind: ema, decay: 0.5}]"]])
def test_activations_are_recomputed_once_memory_runs_out(
    competition, tmp_path, capsys, scarce, recomputed, told, more, at
):
    base = [*BASE, "train.batch_size=6", *more]
    whole = train(load_recipe("tiny", base), competition, tmp_path / "whole", folds=[0])
    scarce(1, at, recomputed)
    auto = train(load_recipe("tiny", [*base, AUTO]), competition, tmp_path / "auto", folds=[0])
    happened = events(auto.path, "out_of_memory")
    assert [(event["recomputes"], event["essays"]) for event in happened] == told
    assert capsys.readouterr().err.count("from here on activations are recomputed") == 1
    for one, two in zip(events(whole.path, "step"), events(auto.path, "step"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    assert auto.score.overall == pytest.approx(whole.score.overall, abs=1e-4)


def test_recomputing_saves_a_loss_that_cannot_be_parted(competition, tmp_path, scarce):
    scarce(1, recomputed=6)
    base = [*BASE, "train.batch_size=6", "task.loss=mcrmse"]
    assert train(load_recipe("tiny", [*base, AUTO]), competition, tmp_path / "auto", folds=[0]).score
    with pytest.raises(Fb3Error, match=r"train\.batch_size, model\.gradient_checkpointing=true or"):
        train(load_recipe("tiny", base), competition, tmp_path / "never", folds=[0])
    scarce(1)
    with pytest.raises(Fb3Error, match=r"try a smaller train\.batch_size, a smaller data\.max_length"):
        train(load_recipe("tiny", [*base, AUTO]), competition, tmp_path / "none", folds=[0])


def test_a_resumed_run_goes_on_recomputing(competition, tmp_path, scarce, monkeypatch):
    recipe = load_recipe("tiny", [*BASE, "train.batch_size=6", "train.save_every_steps=1", AUTO])
    scarce(1, recomputed=6)
    whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    with suppress(Stopped):
        train(recipe, competition, tmp_path / "run", folds=[0], stop_after="0.01s")
    resumed = train(recipe, competition, tmp_path / "run", folds=[0])
    assert [event["step"] for event in events(resumed.path, "resume")] == [1]
    assert len(events(resumed.path, "out_of_memory")) == len(events(whole.path, "out_of_memory")) == 1
    for name, tensor in weights(whole.path).items():
        assert torch.equal(tensor, weights(resumed.path)[name]), name


@pytest.mark.parametrize(
    ("wish", "processes", "at_once"), [(False, 2, False), (True, 1, True), ("auto", 1, False), ("auto", 2, True)]
)
def test_several_processes_cannot_wait_for_one_to_run_out(run, tiny, wish, processes, at_once):
    recipe = tiny.model_copy(update={"model": tiny.model.model_copy(update={"gradient_checkpointing": wish})})
    scorer = build_scorer(recipe, run / "encoder", init="config")
    micro_batching = MicroBatching(recipe, scorer, fold=0, name="fold 0", processes=processes, log=None)
    assert micro_batching.recomputes == scorer.encoder.is_gradient_checkpointing == at_once
    layer, calls = layer_stack(scorer.encoder)[0], []
    layer.attention.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.ones(2, 8, dtype=torch.long)
    scorer.train()({"input_ids": ids, "attention_mask": ids}).scores.sum().backward()
    assert len(calls) == 1 + at_once


def test_the_schedule_counts_optimizer_steps(competition, tmp_path):
    recipe = load_recipe("tiny", [*BASE, "train.batch_size=2", "train.accumulation=3", "train.epochs=2"])
    run = train(recipe, competition, tmp_path / "a", folds=[0])
    steps = events(run.path, "step")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    shares = [0.5 * (1 + np.cos(np.pi * done / 4)) for done in range(4)]  # a step is made at the rate before it
    assert [step["rate"] for step in steps] == pytest.approx([2e-3 * share for share in shares])
    assert [step["head_rate"] for step in steps] == pytest.approx([5e-3 * share for share in shares])


def test_the_logged_rate_is_the_one_that_moved_the_weights(competition, tmp_path):
    """Adam's first step moves a weight by the rate; the head's bias starts at the means of the training essays."""
    plain = ["optimizer.weight_decay=0", "optimizer.eps=1e-12", "schedule.kind=linear", "train.batch_size=3"]
    recipe = load_recipe("tiny", [*BASE, *plain, "train.evaluate_every_steps=1", "train.keep=all"])
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    table = pd.read_csv(competition / "train.csv").merge(pd.read_csv(run.path / "folds.csv"))
    means = table.loc[table["fold"] != 0, list(recipe.data.target_columns)].mean().to_numpy()
    bias = read_weights(run.path / "fold0" / "step1" / "model.safetensors")["head.linear.bias"].numpy()
    assert np.abs(bias - means) == pytest.approx(events(run.path, "step")[0]["head_rate"], rel=1e-3)


@pytest.mark.parametrize(
    ("chosen", "weights"),
    [
        (
            ["task.loss=mse", "task.terms=[{kind: pearson, weight: 0.4, end_weight: 0.0}]"],
            {"mse": [1, 1, 1, 1], "pearson": [0.4, 0.3, 0.2, 0.1]},
        ),
        (["model.dropout=0.3", "task.r_drop={alpha: 0.7}"], {"task": [1] * 4, "r_drop": [0.7] * 4}),
        (["task={kind: binned, squeeze: 0.1}"], {"task": [1] * 4, "squeeze": [0.1] * 4}),
    ],
    ids=["terms", "r_drop", "squeeze"],
)
def test_the_terms_that_make_a_loss_are_logged(competition, tmp_path, chosen, weights):
    run = train(load_recipe("tiny", [*BASE, "train.batch_size=3", *chosen]), competition, tmp_path / "run", folds=[0])
    steps = events(run.path, "step")
    assert len(steps) == 4
    for place, step in enumerate(steps):
        assert step["terms"].keys() == weights.keys()
        assert all(value > 0 for value in step["terms"].values())
        made = sum(weights[name][place] * value for name, value in step["terms"].items())
        assert step["loss"] == pytest.approx(made, rel=1e-5)


def test_the_terms_are_those_of_the_whole_step(competition, tmp_path, scarce):
    """Computed in parts, from accumulated batches, over a window of steps, and with a stop in between."""
    squeezed = ["task={kind: binned, squeeze: 0.1}", "train.batch_size=3"]
    single = train(load_recipe("tiny", [*BASE, *squeezed]), competition, tmp_path / "single", folds=[0])
    singles = [step["terms"] for step in events(single.path, "step")]
    scarce(2)
    recipe = load_recipe("tiny", [*BASE, *squeezed, "train.log_every_steps=4", "train.save_every_steps=1"])
    with suppress(Stopped):
        train(recipe, competition, tmp_path / "run", folds=[0], stop_after="0.01s")
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    assert events(run.path, "resume")
    (window,) = events(run.path, "step")
    assert window["terms"] == pytest.approx(
        {name: np.mean([terms[name] for terms in singles]) for name in ("task", "squeeze")}, rel=1e-4
    )
    recipe = load_recipe("tiny", [*BASE, *squeezed, "train.accumulation=2"])
    two = train(recipe, competition, tmp_path / "two", folds=[0])
    first, second = singles[:2]
    assert events(two.path, "step")[0]["terms"]["task"] == pytest.approx((first["task"] + second["task"]) / 2, rel=0.05)


def test_a_loss_of_one_term_has_none_beside_it(competition, tmp_path):
    run = train(load_recipe("tiny", [*BASE, "task.loss=mse"]), competition, tmp_path / "run", folds=[0])
    assert all("terms" not in step for step in events(run.path, "step"))


def test_a_nan_loss_names_step_and_rate_and_keeps_the_best_checkpoint(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", [*BASE, "train.epochs=2"])
    plain = loop_module.Loop.backward

    def poisoned(self, step, micro_batches, syncs):
        if step.epoch == 1:
            with torch.no_grad():
                step.scorer.head.linear.bias.fill_(float("nan"))
        return plain(self, step, micro_batches, syncs)

    monkeypatch.setattr(loop_module.Loop, "backward", poisoned)
    with pytest.raises(
        Fb3Error, match=r"fold 0: the loss became nan at step 3 \(learning rate .*optimizer.encoder_rate"
    ):
        train(recipe, competition, tmp_path / "run", folds=[0])
    kept = json.loads((tmp_path / "run" / "fold0" / "fold.json").read_text())
    assert kept["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_evaluation_every_so_many_steps_and_keeping_all(competition, tmp_path):
    recipe = load_recipe("tiny", [*BASE, "train.batch_size=2", "train.evaluate_every_steps=4", "train.keep=all"])
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    marks = [event["step"] for event in events(run.path, "evaluation")]
    essays = read_essays(competition / "train.csv", recipe.data, target_of(recipe)).iloc[:24]
    last = len(make_folds(essays, recipe)[0].train_rows)
    assert marks[0] == 4
    assert marks == sorted(set(marks))
    assert abs(marks[-1] - last // 2) <= 1
    assert {f"step{mark}" for mark in marks} <= {p.name for p in (run.path / "fold0").iterdir()}
    best = min(events(run.path, "evaluation"), key=lambda event: event["score"])
    assert json.loads((run.path / "fold0" / "fold.json").read_text())["step"] == best["step"]


def test_bf16_on_a_cpu_stays_close_to_fp32(competition, tmp_path):
    def score(precision):
        recipe = load_recipe("tiny", [*BASE[1:], f"train.precision={precision}"])
        return train(recipe, competition, tmp_path / precision, folds=[0]).score.overall

    assert score("bf16") == pytest.approx(score("fp32"), abs=0.02)


@pytest.mark.parametrize("unscale", ["true", "false"])
def test_a_step_that_the_scaler_skips_moves_neither_schedule_nor_average(competition, tmp_path, monkeypatch, unscale):
    """A gradient scaler on the CPU, whose second step overflows, stands in for fp16 on a GPU."""
    from fb3.training import fold, processes
    from fb3.training.tricks.averaging import EMA

    def scaled(*arguments, **keywords):
        accelerator = Accelerator(*arguments, **keywords)
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=1024.0), True
        accelerator.state.__dict__["_mixed_precision"] = "fp16"
        return accelerator

    monkeypatch.setattr(processes, "Accelerator", scaled)
    monkeypatch.setattr(
        fold, "build_optimizer", lambda scorer, settings, **_: build_optimizer(scorer, settings, scaled=True)
    )
    plain, update, averaged = loop_module.Loop.backward, EMA.after_step, []

    def overflowing(self, step, micro_batches, syncs):
        out = plain(self, step, micro_batches, syncs)
        if step.number == 1:
            self.parameters[-1].grad.fill_(float("inf"))
        return out

    monkeypatch.setattr(loop_module.Loop, "backward", overflowing)
    monkeypatch.setattr(EMA, "after_step", lambda self, step: (averaged.append(step.number), update(self, step)))
    recipe = load_recipe("tiny", [*BASE, "train.batch_size=3", f"optimizer.unscale={unscale}", "tricks=[{kind: ema}]"])
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    steps = events(run.path, "step")
    assert averaged == [number for number in range(len(steps)) if number != 1]
    assert steps[0]["rate"] > steps[1]["rate"] == steps[2]["rate"], "the third is made at the rate of the one skipped"
    assert (steps[0]["gradient_norm"] < 100) == (unscale == "true")


def test_fp16_on_a_cpu_is_refused(competition, tmp_path):
    with pytest.raises(Fb3Error, match="not on a CPU"):
        train(load_recipe("tiny", ["train.precision=fp16"]), competition, tmp_path / "run")
    assert not (tmp_path / "run").exists()
