"""disentangled-flash's kernels in DeBERTa: on a GPU where there is one, else by Triton's interpreter on the CPU.

The interpreter takes minutes for all of it, so without a GPU a part is run; FB3_FLASH=all runs the rest.
"""

import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from fb3.models.kernels import flash_attention as flash
from fb3.models.kernels.deberta import precompute_position_tables
from fb3.models.kernels.disentangled_attention import disentangled_attention, rows_by_distance
from tests.models.kernels.test_deberta import (
    BOTH,
    batch,
    check_equal,
    check_near,
    close,
    distance,
    gradients,
    pair,
    states,
)

MISSING = [name for name in ("triton", "disentangled_flash") if not importlib.util.find_spec(name)]
GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
SPAN = (8, 8, 32)
QUICK = [(9, BOTH, 8)]
WIDE = {"hidden_size": 64, "num_attention_heads": 2}  # its narrowest heads have 32

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install triton 'disentangled-flash>=1.1.1,<1.2'"
)
slow = pytest.mark.skipif(
    not GPU and os.environ.get("FB3_FLASH") != "all", reason="slow in Triton's interpreter; FB3_FLASH=all runs it"
)


def on_device(inputs):
    return {name: t.to(DEVICE) for name, t in inputs.items()}


def _dot(builder):
    """The interpreter's product, which would take bf16's bits for integers, as a GPU makes it."""
    import triton.language as tl

    dot = builder.create_dot

    def in_fp32(self, a, b, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.cast_impl(each, tl.float32) for each in (a, b))
        return dot(self, a, b, *rest)

    return in_fp32


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The kernels' calls; on a CPU the library is told that this is its GPU."""
    flash._plan.cache_clear()
    for name, empty in (("_faults", {}), ("_said", set()), ("_last", None)):
        monkeypatch.setattr(flash, name, empty)
    if not GPU:
        from disentangled_flash import tuning
        from disentangled_flash.training import _kernels
        from triton.runtime import interpreter

        resources = tuning.DeviceResources(shared_memory_per_block=166912, multiprocessor_count=108)
        monkeypatch.setattr(tuning, "_device_resources", lambda index: resources)
        monkeypatch.setattr(tuning, "_device_index", lambda device: 0)
        monkeypatch.setattr(flash, "_DEVICES", ("cpu",))
        monkeypatch.setattr(flash, "_absent", lambda device: False)
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot(interpreter.InterpreterBuilder))
        for function in (_kernels.training_attention, _kernels.training_attention_packed):
            code = function.__code__
            consts = tuple("cpu" if const == "cuda" else const for const in code.co_consts)
            monkeypatch.setattr(function, "__code__", code.replace(co_consts=consts))
    made, attend = [], flash._attend

    def counted(*args):
        out = attend(*args)
        made.append(out is not None)
        return out

    monkeypatch.setattr(flash, "_attend", counted)
    return made


@pytest.mark.parametrize(
    ("tokens", "kinds", "buckets"),
    [
        pytest.param(t, kinds, b, marks=[] if (t, kinds, b) in QUICK else slow)
        for t in (1, 9, 70)
        for kinds in (BOTH, ["c2p"], ["p2c"])
        for b in (8, -1, 256)
        if (b == 256) == (t == 70) and (t < 70 or kinds == BOTH)
    ],
    ids=str,
)
def test_it_equals_transformers_own_with_all_gradients(tokens, kinds, buckets, calls, capsys):
    eager, fused = (e.to(DEVICE) for e in pair(pos_att_type=kinds, position_buckets=buckets, **WIDE))
    check_equal(eager, fused, on_device(batch(tokens)))
    assert calls
    assert all(calls)
    assert list(flash._faults.values()) == [None, None], "with gradients and without"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=slow), torch.float16])
def test_in_low_precision_it_stays_as_near_to_fp32_as_transformers_own(dtype, calls):
    eager, fused = (e.to(DEVICE) for e in pair(share_att_key=False, **WIDE))
    check_near(eager, fused, on_device(batch(30)), dtype)
    assert calls
    assert all(calls)


def test_fp16_with_large_queries_does_not_overflow():
    scale = 96**-0.5
    query, key, value = (torch.randn(1, 9, 2, 32, device=DEVICE).transpose(1, 2) for _ in range(3))
    tables = [torch.randn(16, 2, 32, device=DEVICE) * 240 for _ in range(2)]
    assert (query.transpose(1, 2)[0, :, 0] * 120 @ tables[0][:, 0].T).abs().max() > 65504, "it would"
    tables = tuple(t.half() for t in tables)
    mask = torch.ones(1, 1, 1, 9, device=DEVICE)
    with torch.no_grad():
        out = flash._attend((query * 120).half(), (key * 120).half(), value.half(), tables, SPAN, mask, scale, 0.0)
    assert out.isfinite().all()


@pytest.mark.parametrize("grad", [False, True])
def test_kernels_are_launched_on_the_tensors_device(grad, monkeypatch):
    """Triton launches on the current one, which is the first where nobody set another."""
    from disentangled_flash.training import _kernels

    inside, launched = [], []

    @contextmanager
    def current(device):
        inside.append(device)
        yield
        inside.pop()

    def noted(kernels):
        return lambda *args, **given: launched.append(list(inside)) or kernels(*args, **given)

    for name in ("training_attention", "training_attention_packed"):
        monkeypatch.setattr(_kernels, name, noted(getattr(_kernels, name)))
    assert type(flash._current(torch.device("cuda", 1))) is torch.cuda.device
    assert flash._current(torch.device("cuda", 1)).idx == 1
    monkeypatch.setattr(flash, "_current", current)
    _, fused = pair(**WIDE)
    fused = fused.to(DEVICE)
    with torch.set_grad_enabled(grad):
        states(fused.train(grad), on_device(batch(9)))
    assert launched
    assert all(each == [DEVICE] for each in launched)


def operands(tokens, kinds, dtype):
    """Queries, keys, values (2, 2, T, 32), the tables' rows (48, 2, 32) or none, and a mask of one padded essay."""
    torch.manual_seed(0)
    drawn = [torch.randn(2, tokens, 2, 32) for _ in range(3)] + [torch.randn(48, 2, 32) for _ in range(2)]
    drawn = [t.to(DEVICE, dtype) for t in drawn]
    mask = torch.ones(2, 1, 1, tokens, device=DEVICE)
    mask[1, ..., tokens // 2 + 1 :] = 0
    tables = [t if there else None for t, there in zip(drawn[3:], kinds, strict=True)]
    return [t.transpose(1, 2) for t in drawn[:3]] + tables, mask


def own(leaves, mask, scale):
    query, key, value, *tables = leaves
    rows = rows_by_distance(query.shape[2], *TRIAL, query.device)
    return disentangled_attention(query, key, value, tuple(tables), rows, mask[:, 0, 0], scale, 0.0)


def probabilities(attend, leaves):
    """(B, H, T, T), read off from what becomes of unit vectors as values, some columns at a time."""
    essays, heads, tokens, width = leaves[2].shape
    units = torch.eye(tokens, -(-tokens // width) * width, dtype=leaves[2].dtype, device=DEVICE)
    found = [
        attend([*leaves[:2], some.expand(essays, heads, -1, -1), *leaves[3:]]).unflatten(2, (heads, width))
        for some in units.split(width, 1)
    ]
    return torch.cat(found, 3).transpose(1, 2)[..., :tokens]


def results(attend, leaves, mask, dtype):
    """The values of real tokens, and the gradients of all operands where they are wanted."""
    leaves = [t if t is None else t.detach().to(dtype).requires_grad_(torch.is_grad_enabled()) for t in leaves]
    out = attend(leaves)[mask[:, 0, 0].bool()]
    if not torch.is_grad_enabled():
        return [out]
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=DEVICE).view_as(out).cos()
    given = [t for t in leaves if t is not None]
    return [out.detach(), *torch.autograd.grad(out, given, slope.to(dtype))]


TRIAL = (24, 20, 64)
LOW_AND_FULL = [
    (0.0, torch.bfloat16),
    (0.3, torch.float16),
    *(pytest.param(*each, marks=slow) for each in [(0.3, torch.bfloat16), (0.0, torch.float16)]),
    *(pytest.param(share, torch.float32, marks=slow) for share in (0.0, 0.3)),
]


@pytest.mark.parametrize(("dropout", "dtype"), LOW_AND_FULL)
@pytest.mark.parametrize(("grad", "kinds", "tokens"), [(True, (True, True), 40), (False, (False, True), 33)])
def test_values_and_gradients_are_those_of_the_probabilities_that_dropout_left(dropout, dtype, grad, kinds, tokens):
    scale = 96**-0.5
    leaves, mask = operands(tokens, kinds, dtype)

    def theirs(leaves):
        torch.manual_seed(1)  # the same dropout each time
        *states, to_keys, to_queries = leaves
        return flash._attend(*states, (to_keys, to_queries), TRIAL, mask, scale, dropout)

    def ours(leaves):
        if not dropout:
            return own(leaves, mask, scale).transpose(1, 2).flatten(2)
        units = torch.eye(tokens, dtype=leaves[2].dtype, device=DEVICE).expand(2, 2, -1, -1)
        weights = own([*leaves[:2], units, *leaves[3:]], mask, scale) * kept / (1 - dropout)
        return (weights @ leaves[2]).transpose(1, 2).flatten(2)

    with torch.set_grad_enabled(grad):
        kept = probabilities(theirs, leaves).detach() != 0
        found = results(theirs, leaves, mask, dtype)
        exact, rounded = (results(ours, leaves, mask, kind) for kind in (torch.float64, dtype))
    least = max(1e-5, torch.finfo(dtype).eps)
    for mine, usual, truth in zip(found, rounded, exact, strict=True):
        assert distance(mine, truth) <= 3 * distance(usual, truth) + least * truth.norm()
    if dropout:
        seen = (mask * mask.mT).bool().expand_as(kept)
        deviation = (dropout * (1 - dropout) / seen.sum().item()) ** 0.5
        assert abs(1 - dropout - kept[seen].double().mean().item()) < 6 * deviation


def fault(dropout=0.0):
    like = torch.empty(2, 2, 40, 32, device=DEVICE)
    return flash._fault(like, (like, like), 96**-0.5, dropout)


def _swapped(attend, q, k, v, tables, *rest):
    return attend(q, k, v, tables[::-1], *rest)


def _backwards(attend, q, k, v, tables, *rest):
    return attend(q, k, v, tuple(t.flip(0) for t in tables), *rest)


def _scaled(attend, q, k, v, tables, span, mask, scale, dropout):
    return attend(q, k, v, tables, span, mask, scale * 1.001, dropout)


def _unmasked(attend, q, k, v, tables, span, mask, scale, dropout):
    return attend(q, k, v, tables, span, torch.ones_like(mask), scale, dropout)


def _other_buckets(attend, q, k, v, tables, span, *rest):
    return attend(q, k, v, tables, (span[0], span[1] - 2, span[2]), *rest)


def _no_number(attend, *given):
    return attend(*given) * torch.nan


class Raises(torch.autograd.Function):
    """The values as they are; no way back."""

    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, slope):
        raise RuntimeError("out of resource: registers")


def _no_way_back(attend, *given):
    return Raises.apply(attend(*given))


def _no_dropout(attend, *given):
    return _out_of_resources() if given[-1] else attend(*given)


@pytest.mark.parametrize(
    ("wrong", "dropout", "what"),
    [
        (_swapped, 0.0, "in the values"),
        pytest.param(_backwards, 0.0, "in the values", marks=slow),
        pytest.param(_scaled, 0.0, "in the values", marks=slow),
        (_unmasked, 0.0, "in the values"),
        pytest.param(_other_buckets, 0.0, "in the values", marks=slow),
        pytest.param(_no_number, 0.0, "off by nan in the values", marks=slow),
        (_no_way_back, 0.0, "RuntimeError: out of resource: registers"),
        (_no_dropout, 0.3, "RuntimeError: out of resource: shared memory"),
    ],
)
def test_the_check_finds_what_is_wrong(wrong, dropout, what, monkeypatch):
    monkeypatch.setattr(flash, "_attend", partial(wrong, flash._attend))
    assert what in fault(dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_check_finds_no_fault_in_it(dropout, calls):
    assert fault(dropout) is None
    assert all(calls)


def test_the_check_draws_nothing_and_is_made_once(calls):
    query = torch.empty(1, 2, 9, 32, device=DEVICE)
    torch.manual_seed(0)
    expected = torch.rand(3), torch.rand(3, device=DEVICE)
    torch.manual_seed(0)
    assert flash.flash_runs(query, (query, query), 0.1, 0.0)
    assert len(calls) == 1
    assert flash.flash_runs(query, (query, query), 0.1, 0.0)
    assert len(calls) == 1
    assert flash.flash_runs(torch.empty(1, 2, 65, 32, device=DEVICE), (query, query), 0.1, 0.0)
    assert len(calls) == 2, "longer ones have other kernels"
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.equal(torch.rand(3, device=DEVICE), expected[1])


@slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_training_dropout_obeys_the_seed_also_when_checkpointed(checkpointing, calls, capsys):
    _, fused = pair(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.3, **WIDE)
    fused, inputs = fused.to(DEVICE).train(), on_device(batch(12))
    torch.manual_seed(0)
    if checkpointing:  # the check falls into the first forward
        fused.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    out, slopes = gradients(fused, inputs)
    fused.gradient_checkpointing_disable()
    torch.manual_seed(0)
    again, whole = gradients(fused, inputs)
    close(again, out)
    for name, slope in whole.items():
        close(slopes[name], slope, name)
    other, _ = gradients(fused, inputs)
    assert not torch.allclose(other, out)
    assert all(calls)
    assert capsys.readouterr().err == ""


@slow
def test_autocast_and_inference_mode_at_the_first_call(calls, capsys):
    eager, fused = (e.to(DEVICE).eval() for e in pair(**WIDE))
    inputs = on_device(batch(12))
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        mine, theirs = states(fused, inputs), states(eager, inputs)
    torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0.05)
    mine, slopes = gradients(fused.train(), inputs)
    assert slopes["encoder.rel_embeddings.weight"].abs().sum() > 0
    assert {case[1] for case in flash._faults} == {torch.bfloat16, torch.float32}
    assert all(calls)
    assert capsys.readouterr().err == ""


@slow
def test_a_gpu_is_waited_for_once_a_forward(monkeypatch, calls):
    _, fused = pair(num_hidden_layers=3, **WIDE)
    fused, found = fused.to(DEVICE), []
    find = flash._find_pieces
    monkeypatch.setattr(flash, "_find_pieces", lambda seen: found.append(seen) or find(seen))
    gradients(fused, on_device(batch(12)))
    found.clear()
    for tokens in (12, 12, 20):
        gradients(fused, on_device(batch(tokens)))
    assert [seen.shape[1] for seen in found] == [12, 12, 20]
    with torch.inference_mode():
        states(fused.eval(), on_device(batch(12)))
    assert len(found) == 3, "and never without gradients"


def test_the_check_that_runs_out_of_memory_is_made_again(monkeypatch):
    query = torch.empty(1, 2, 9, 32, device=DEVICE)
    monkeypatch.setattr(flash, "_fault", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        flash.flash_runs(query, (query, query), 0.1, 0.0)
    monkeypatch.setattr(flash, "_fault", lambda *given: "wrong")
    assert not flash.flash_runs(query, (query, query), 0.1, 0.0)


def test_what_is_wrong_is_said_once_and_ours_computes(monkeypatch, capsys):
    eager, fused = (e.to(DEVICE) for e in pair(**WIDE))
    inputs = on_device(batch(12))
    monkeypatch.setattr(flash, "_attend", partial(_swapped, flash._attend))
    theirs, their_slopes = gradients(eager, inputs)
    for _ in range(2):
        mine, slopes = gradients(fused, inputs)
        close(mine, theirs)
        close(slopes["input"], their_slopes["input"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"DeBERTa's attention on {DEVICE} in float32: torch's kernel, not disentangled-flash's (")


def test_a_later_failure_is_said_once_and_ours_computes_from_there(monkeypatch, calls, capsys):
    eager, fused = (e.to(DEVICE).eval() for e in pair(**WIDE))
    inputs = on_device(batch(12))
    with torch.inference_mode():
        theirs = states(eager, inputs)
        precompute_position_tables(fused)
        close(states(fused, inputs), theirs)
        monkeypatch.setattr(flash, "_attend", _out_of_resources)
        for _ in range(2):
            close(states(fused, inputs), theirs)
    assert len(capsys.readouterr().err.splitlines()) == 1

    monkeypatch.setattr(flash, "_attend", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        states(fused, inputs)


def _out_of_resources(*given):
    raise RuntimeError("out of resource: shared memory")


def _out_of_memory(*given):
    raise torch.OutOfMemoryError


def test_masks_with_gaps(calls, capsys):
    eager, fused = (e.to(DEVICE) for e in pair(**WIDE))
    inputs = on_device(batch(12))
    inputs["attention_mask"][1, :2] = 0
    (mine, slopes), (theirs, their_slopes) = gradients(fused, inputs), gradients(eager, inputs)
    close(mine, theirs)
    close(slopes["encoder.rel_embeddings.weight"], their_slopes["encoder.rel_embeddings.weight"])
    assert calls[0], "the check's own mask has none"
    assert not any(calls[1:])
    calls.clear()
    with torch.inference_mode():
        close(states(fused.eval(), inputs), theirs)
    assert all(calls), "without gradients it can"
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_gpu_nothing_of_it_is_imported():
    script = (
        "import sys, torch; from tests.models.kernels.test_deberta import batch, pair, states\n"
        "states(pair(hidden_size=64, num_attention_heads=2)[1], batch(9))\n"
        "assert 'disentangled_flash' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
