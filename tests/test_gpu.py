"""Tests that only a GPU can answer: kernels, precisions, memory that really runs out, several processes on a device.

Skipped without CUDA. FB3_GPU_TESTS=cpu runs those that ask for no GPU's memory on the CPU: a rehearsal of the tests.
"""

import json
import os
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from fb3.bundles.packing import write_bundle
from fb3.data.essays import read_essays
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import tokenise
from fb3.models.build import build_scorer
from fb3.models.kernels.deberta import precompute_position_tables
from fb3.prediction import inference_loop as prediction
from fb3.prediction import token_budget as budget
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.prediction.member_inputs import encode
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import load_fold
from fb3.runs.run_folder import Member
from fb3.submission.inference import infer
from fb3.tasks.build import build_task
from fb3.training.optimizer import build_optimizer
from fb3.training.run import train
from fb3.training.tricks.build import build_tricks
from fb3.training.tricks.trick import Step
from tests.models.kernels.test_deberta import (
    BOTH,
    batch,
    check_near,
    close,
    distance,
    gradients,
    pair,
    states,
)

CUDA = torch.cuda.is_available()
REHEARSED = os.environ.get("FB3_GPU_TESTS") == "cpu" and not CUDA
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
NEWER = CUDA and torch.cuda.get_device_capability() >= (8, 0)
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 64}  # heads of 64, as in v3's shapes
LOW = [
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(CUDA and not NEWER, reason="no bf16 before sm_80")),
]
on_a_gpu = pytest.mark.skipif(not CUDA, reason="no CUDA here: it needs a GPU's memory")

pytestmark = pytest.mark.skipif(not (CUDA or REHEARSED), reason="no CUDA here; on a GPU: pytest tests/test_gpu.py")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """Budgets that other tests have measured, and what they held."""
    monkeypatch.setattr(budget, "_MEASURED", found := {})
    monkeypatch.setattr(budget.Budget.__init__, "__defaults__", (*budget.Budget.__init__.__defaults__[:-1], found))
    if CUDA:
        torch.cuda.empty_cache()
    return found


@contextmanager
def holding(gib):
    """A GPU on which torch may hold no more than that; its allocator then raises the real error."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@contextmanager
def peak():
    """GiB that were held at most within it; a list of one."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    most = []
    yield most
    most.append(torch.cuda.max_memory_reserved(DEVICE) / 2**30)


def on_device(inputs, device=DEVICE):
    return {name: t.to(device) for name, t in inputs.items()}


@pytest.mark.parametrize("tokens", [9, 200, 600])
@pytest.mark.parametrize("kinds", [BOTH, ["c2p"]], ids="+".join)
def test_attention_equals_transformers_own_with_all_gradients(tokens, kinds):
    eager, fused = (e.to(DEVICE) for e in pair(pos_att_type=kinds, position_buckets=256, **WIDE))
    inputs = on_device(batch(tokens))
    (mine, my_slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
    assert distance(mine, theirs) < 1e-4 * theirs.double().norm()
    largest = max(slope.double().norm() for slope in their_slopes.values())
    for name, slope in their_slopes.items():  # a true gradient of zero is all rounding
        assert distance(my_slopes[name], slope) <= 1e-3 * slope.double().norm() + 1e-6 * largest, name
    with torch.inference_mode():
        for _ in range(2):  # the second time with precomputed tables
            assert distance(states(fused.eval(), inputs), theirs) < 1e-4 * theirs.double().norm()
            precompute_position_tables(fused)


@pytest.mark.parametrize("dtype", LOW)
def test_attention_in_low_precision_stays_as_near_to_fp32_as_transformers_own(dtype):
    eager, fused = (e.to(DEVICE) for e in pair(share_att_key=False, position_buckets=256, **WIDE))
    check_near(eager, fused, on_device(batch(300)), dtype)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here: it needs two")
def test_attention_on_the_second_gpu_while_the_first_is_current():
    second = torch.device("cuda", 1)
    eager, fused = (e.to(second) for e in pair(**WIDE))
    inputs = on_device(batch(40), second)
    assert torch.cuda.current_device() == 0
    (mine, my_slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
    close(mine, theirs)
    assert distance(my_slopes["input"], their_slopes["input"]) < 1e-3 * their_slopes["input"].double().norm()


TRICKS = ["tricks=[]", "tricks=[{kind: fgm}]", "tricks=[{kind: awp, from_epoch: 0}]"]


def steps(run):
    return events(run, "step")


def events(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tricks", TRICKS)
def test_a_training_in_low_precision_follows_one_in_fp32(precision, tricks, competition, tmp_path):
    """Losses of all steps; gradients' norms where fp16's scaler, which begins too high, has not skipped the step."""
    if precision == "fp16" and not CUDA:
        pytest.skip("no fp16 on a CPU")
    if precision == "bf16" and CUDA and not NEWER:
        pytest.skip("no bf16 before sm_80")
    base = ["train.epochs=2", "train.log_every_steps=1", "optimizer.clip=1", "predict.precision=fp32", tricks]
    whole, low = (
        train(load_recipe("tiny", [*base, f"train.precision={p}"]), competition, tmp_path / p, folds=[0])
        for p in ("fp32", precision)
    )
    exact, found = steps(whole.path), steps(low.path)
    skipped = sum(not np.isfinite(step["gradient_norm"]) for step in found)
    assert skipped <= (4 if precision == "fp16" else 0)
    assert len(found) == len(exact)
    assert found[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    if not skipped:
        for one, two in zip(exact[:3], found[:3], strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=0.05)
            assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=0.1)
    assert low.score.overall == pytest.approx(whole.score.overall, abs=0.1)


@pytest.mark.parametrize("tricks", [*TRICKS, "tricks=[{kind: pgd, steps: 2}]"])
def test_gradients_behind_the_scaler_are_those_without(tricks, run):
    """Scaled up and down again: what perturbs along scaled gradients must go no other way and no further."""
    recipe, found = load_recipe("tiny", [tricks]), {}
    for scale in (1.0, 1024.0):
        scorer = load_fold(recipe, run / "encoder", run / "fold0").to(DEVICE).train()
        task = build_task(recipe)
        inputs = on_device(batch(30)) | {"targets": torch.full((3, 6), 4.0, device=DEVICE)}

        def backward(scorer=scorer, task=task, inputs=inputs, scale=scale):
            out = task.loss(scorer, inputs)
            (out.loss * scale).backward()
            return out

        for trick in reversed(build_tricks(recipe, scorer, 10)):
            backward = partial(trick.backward, Step(scorer, inputs, number=1, progress=0.5), backward)
        backward()
        found[scale] = {name: p.grad / scale for name, p in scorer.named_parameters() if p.grad is not None}
    for name, gradient in found[1.0].items():
        assert distance(found[1024.0][name], gradient) <= 1e-3 * gradient.double().norm() + 1e-6, name


DEEP = (
    "model.scratch={config: {hidden_size: 128, num_hidden_layers: 8, num_attention_heads: 4, intermediate_size: 512, "
    "max_position_embeddings: 512, relative_attention: true, position_buckets: 32, pos_att_type: [p2c, c2p], "
    "norm_rel_ebd: layer_norm, share_att_key: true, position_biased_input: false, type_vocab_size: 0}}"
)
HEAVY = [
    "train.precision=fp32",
    "train.epochs=1",
    "train.batch_size=30",
    "train.log_every_steps=1",
    "task.loss=mse",
    DEEP,
]


@on_a_gpu
@pytest.mark.parametrize("checkpointing", ["auto", "false"])
def test_training_goes_on_where_memory_really_runs_out(checkpointing, competition, tmp_path, capfd):
    recipe = load_recipe("tiny", [*HEAVY, f"model.gradient_checkpointing={checkpointing}"])
    with peak() as most:
        whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    with holding(0.7 * most[0]):
        scarce = train(recipe, competition, tmp_path / "scarce", folds=[0])
    happened = events(scarce.path, "out_of_memory")
    assert happened, f"{most[0]:.2f} GiB at most, and 70 % of it sufficed"
    assert happened[0]["recomputes"] == (checkpointing == "auto")
    assert "out of memory with 30 essays at a time" in capfd.readouterr().err
    assert not events(whole.path, "out_of_memory")
    for one, two in zip(steps(whole.path), steps(scarce.path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-2)
    assert scarce.score.overall == pytest.approx(whole.score.overall, abs=1e-3)


@pytest.fixture
def parts(run, competition):
    """A trained scorer on the device, its task, sixty essays and their ids."""
    recipe = load_recipe(run / "recipe.yaml")
    essays = read_essays(competition / "train.csv", recipe.data)
    encoded = encode(Member("run", run, recipe, [run / "fold0"]), essays)
    scorer = load_fold(recipe, run / "encoder", run / "fold0").to(DEVICE)
    return scorer, build_task(recipe), encoded, essays["text_id"].to_numpy()


@on_a_gpu
def test_predictions_stay_where_memory_really_runs_out(parts, capfd):
    with peak() as most:
        plain = predict(*parts, token_budget=10**6, shown=False)
    with holding(0.6 * most[0]):
        scarce = predict(*parts, token_budget=10**6, shown=False)
    assert "out of memory with 60 essays" in capfd.readouterr().err
    np.testing.assert_allclose(scarce.values, plain.values, atol=1e-4)


@on_a_gpu
def test_windows_of_one_essay_are_parted_where_memory_really_runs_out(run, parts, capfd):
    recipe = load_recipe("tiny", ["data={max_length: 40000, windows: {length: 128}}"])
    _, task, encoded, _ = parts
    tokenizer = load_tokenizer(run / "encoder")
    words = [int(token) for row in encoded.rows for token in row[1:-1]]
    text = tokenizer[0].decode((words * 3)[:35000])
    windowed = build_scorer(recipe, run / "encoder", init="config").to(DEVICE).eval()
    given = windowed, task, tokenise([text], *tokenizer, recipe.data), np.arange(1)
    assert given[2].total_lengths[0] > 20000
    with peak() as most:
        plain = predict(*given, token_budget=10**6, shown=False)
    with holding(0.5 * most[0]):
        scarce = predict(*given, token_budget=10**6, shown=False)
    assert "out of memory with one essay of" in capfd.readouterr().err
    np.testing.assert_allclose(scarce.values, plain.values, atol=1e-4)


@on_a_gpu
def test_the_first_batch_tells_how_many_tokens_the_memory_holds(parts, nothing_remembered):
    assert parts[2].total_lengths.sum() > budget._FIRST, "else nothing is measured"
    plain = predict(*parts, token_budget=2000, shown=False)
    nothing_remembered.clear()
    with peak() as most:
        again = predict(*parts, shown=False)
    np.testing.assert_allclose(again.values, plain.values, atol=1e-4)
    [found] = nothing_remembered.values()
    assert budget._FIRST < found.tokens <= budget._MOST, f"{most[0]:.2f} GiB for {parts[2].total_lengths.sum()} tokens"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lowered_weights_predict_within_their_precision(precision, parts, run):
    if precision == "fp16" and not CUDA:
        pytest.skip("no fp16 on a CPU")
    exact = predict(*parts, shown=False).values
    low = lower_weights(
        load_fold(load_recipe(run / "recipe.yaml"), run / "encoder", run / "fold0").to(DEVICE), precision
    )
    found = predict(low, *parts[1:], precision=precision, shown=False).values
    assert 0 < np.abs(found - exact).max() < (0.005 if precision == "fp16" else 0.03)


def test_batches_ahead_from_pinned_memory_change_no_prediction(parts, monkeypatch):
    found = {}
    for ahead in (0, 1):
        monkeypatch.setitem(prediction._AHEAD, DEVICE.type, ahead)
        found[ahead] = [predict(*parts, token_budget=900, shown=False).values for _ in range(3)]
    for values in (*found[0], *found[1]):
        np.testing.assert_allclose(values, found[0][0], atol=1e-5)


def test_two_processes_share_one_device(bundle, competition, tmp_path, monkeypatch, capfd):
    found = {}
    for devices in (str(DEVICE), f"{DEVICE},{DEVICE}"):
        monkeypatch.setenv("FB3_DEVICE", devices)
        found[devices] = infer(bundle, competition, tmp_path / "submission.csv", strict=True)
    assert f"on ['{DEVICE}', '{DEVICE}']" in capfd.readouterr().err
    one, two = found.values()
    assert one["text_id"].tolist() == two["text_id"].tolist()
    np.testing.assert_allclose(one.iloc[:, 1:], two.iloc[:, 1:], atol=1e-4)


@on_a_gpu
def test_a_fold_on_the_gpu_is_the_fold_on_the_cpu(run, bundle, competition):
    recipe = load_recipe(run / "recipe.yaml")
    member = Member("run", run, recipe, [run / "fold0"])
    essays = read_essays(competition / "train.csv", recipe.data)
    given = encode(member, essays), essays["text_id"].to_numpy()
    here, there = (predict_fold(member, 0, *given, each, shown=False).values for each in ("cpu", str(DEVICE)))
    np.testing.assert_allclose(there, here, atol=1e-3)


def test_adamw_of_fp16_takes_the_fused_ones_steps(run, tiny):
    """By foreach, since a fused step swallows the sign of one that the scaler skips."""
    moved = {}
    for scaled in (False, True):
        torch.manual_seed(0)
        scorer = build_scorer(tiny, run / "encoder", init="config").to(DEVICE)
        optimizer = build_optimizer(scorer, tiny.optimizer, scaled=scaled)
        for step in range(3):
            for number, parameter in enumerate(scorer.parameters()):
                generator = torch.Generator().manual_seed(97 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(DEVICE)
            optimizer.step()
        moved[scaled] = {name: p.detach().clone() for name, p in scorer.named_parameters()}
    for name, tensor in moved[False].items():
        torch.testing.assert_close(moved[True][name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@on_a_gpu
def test_a_step_with_an_overflow_is_skipped_and_noticed(run, tiny):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="fp16")
    scorer = build_scorer(tiny, run / "encoder", init="config").to(accelerator.device)
    scorer, optimizer = accelerator.prepare(scorer, build_optimizer(scorer, tiny.optimizer, scaled=True))
    before = [p.detach().clone() for p in scorer.parameters()]
    inputs = on_device(batch(20), accelerator.device)
    for factor, skipped in ((1e38, True), (1.0, False)):
        accelerator.backward(scorer(inputs).scores.sum() * factor)
        accelerator.unscale_gradients(optimizer)
        optimizer.step()
        assert accelerator.optimizer_step_was_skipped is skipped
        assert all(map(torch.equal, before, scorer.parameters())) is skipped
        optimizer.zero_grad()
    AcceleratorState._reset_state()


@on_a_gpu
def test_a_packed_run_trained_in_fp16_infers(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", ["train.precision=fp16", "predict.precision=fp16", "train.epochs=1"])
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    submission = infer(write_bundle([run.path], tmp_path / "bundle").path, competition, tmp_path / "s.csv", strict=True)
    assert submission.iloc[:, 1:].to_numpy().std() > 0
