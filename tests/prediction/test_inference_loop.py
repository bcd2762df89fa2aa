import threading
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.data.essays import read_essays
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import tokenise
from fb3.prediction import inference_loop as prediction
from fb3.prediction.inference_loop import lower_weights, predict
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import load_fold
from fb3.tasks.build import build_task


@pytest.fixture(scope="module")
def parts(run, competition):
    recipe = load_recipe(run / "recipe.yaml")
    essays = read_essays(competition / "train.csv", recipe.data)
    encoded = tokenise(essays["full_text"].tolist(), *load_tokenizer(run / "encoder"), recipe.data)
    return load_fold(recipe, run / "encoder", run / "fold0"), build_task(recipe), encoded, essays["text_id"].to_numpy()


@given(st.permutations(range(60)), st.integers(100, 5000))
@settings(max_examples=5, deadline=None)
def test_order_and_batches_change_no_prediction_by_id(parts, order, budget):
    scorer, task, encoded, ids = parts
    plain = predict(scorer, task, encoded, ids, shown=False)
    rows = np.array(order)[:20]
    other = predict(scorer, task, encoded, ids, rows=rows, token_budget=budget, shown=False)
    assert other.ids.tolist() == ids[rows].tolist()
    np.testing.assert_allclose(other.values, plain.values[rows], atol=1e-5)


def test_the_mode_of_the_model_is_left_as_it_was(parts):
    scorer, task, encoded, ids = parts
    for mode in (True, False):
        scorer.train(mode)
        predict(scorer, task, encoded, ids, rows=np.array([3]), shown=False)
        assert scorer.training is mode
    scorer.eval()


def test_bf16_weights_predict_within_bf16(run, parts):
    scorer, task, encoded, ids = parts
    low = load_fold(load_recipe(run / "recipe.yaml"), run / "encoder", run / "fold0")
    low = lower_weights(low, "bf16")
    assert next(low.encoder.parameters()).dtype == torch.bfloat16
    assert next(low.head.parameters()).dtype == torch.float32
    plain = predict(scorer, task, encoded, ids, shown=False).values
    lowered = predict(low, task, encoded, ids, precision="bf16", shown=False).values
    assert np.abs(plain - lowered).max() < 0.02
    assert not np.array_equal(plain, lowered)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lowered_weights_predict_as_with_tables_of_each_batch(run, parts, precision):
    """The run's encoder is a DeBERTa."""
    _, task, encoded, ids = parts
    low = load_fold(load_recipe(run / "recipe.yaml"), run / "encoder", run / "fold0")
    assert lower_weights(low, precision).encoder.encoder.layer[0].attention.self.position_keys is not None
    found = predict(low, task, encoded, ids, precision=precision, shown=False).values
    low.train().eval()
    plain = predict(low, task, encoded, ids, precision=precision, shown=False).values
    assert low.encoder.encoder.layer[0].attention.self.position_keys is None
    assert np.array_equal(found, plain)


def test_live_weights_are_predicted_as_they_are_now(run, parts):
    """Evaluations during training: written in place, and swapped with averaged ones, as EMA does."""
    _, task, encoded, ids = parts
    live, fresh = (load_fold(load_recipe(run / "recipe.yaml"), run / "encoder", run / "fold0") for _ in range(2))
    for change in (lambda p: p.data.mul_(1.1), lambda p: setattr(p, "data", p.data * 1.1)):
        predict(live, task, encoded, ids, shown=False)
        for parameter in live.encoder.parameters():
            change(parameter)
        fresh.load_state_dict(live.state_dict())
        found, wanted = (predict(s, task, encoded, ids, shown=False).values for s in (live, fresh))
        assert np.array_equal(found, wanted)


@pytest.fixture
def begun_ahead(monkeypatch):
    """A CPU that is treated as a GPU is: collated in a thread, begun before the last batch is fetched."""
    monkeypatch.setitem(prediction._AHEAD, "cpu", 1)


def test_batches_ahead_change_nothing(parts, begun_ahead, monkeypatch):
    scorer, task, encoded, ids = parts
    with monkeypatch.context() as serial:
        serial.setitem(prediction._AHEAD, "cpu", 0)
        plain = predict(scorer, task, encoded, ids, token_budget=300, shown=False)
    happened = noted(monkeypatch)
    ahead = predict(scorer, task, encoded, ids, token_budget=300, shown=False)
    assert np.array_equal(ahead.values, plain.values)
    made = len(happened) // 2
    assert made > 3
    late = [("begun", 0)] + [each for n in range(1, made) for each in (("begun", n), ("fetched", n - 1))]
    assert happened == [*late, ("fetched", made - 1)]


def noted(monkeypatch):
    """What happens to the batches, by their numbers, in order."""
    happened, real, numbers = [], prediction._begin, count()

    def begin(*arguments):
        number, result = next(numbers), real(*arguments)
        happened.append(("begun", number))
        return lambda: happened.append(("fetched", number)) or result()

    monkeypatch.setattr(prediction, "_begin", begin)
    return happened


@pytest.mark.parametrize("where", ["collate", "begin", "fetch"])
def test_memory_that_runs_out_ahead_loses_no_batch(parts, begun_ahead, monkeypatch, capsys, where):
    """In the thread, where a batch is begun, or, as a GPU may say it, where its result is asked for."""
    scorer, task, encoded, ids = parts
    plain = predict(scorer, task, encoded, ids, shown=False)
    real_collate, real_begin = prediction.collate, prediction._begin

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    def scarce(encoded, rows):
        return fails() if len(rows) > 2 and rows.max() > 40 and where == "collate" else real_collate(encoded, rows)

    def begin(scorer, task, batch, device):
        large = len(batch["row"]) > 2 and batch["row"].max() > 40
        if large and where == "begin":
            fails()
        result = real_begin(scorer, task, batch, device)
        return fails if large and where == "fetch" else result

    monkeypatch.setattr(prediction, "collate", scarce)
    monkeypatch.setattr(prediction, "_begin", begin)
    again = predict(scorer, task, encoded, ids, token_budget=1200, shown=False)
    assert "out of memory with" in capsys.readouterr().err
    np.testing.assert_allclose(again.values, plain.values, atol=1e-5)


def test_another_error_in_the_thread_is_the_callers(parts, begun_ahead, monkeypatch):
    scorer, task, encoded, ids = parts

    def broken(encoded, rows):
        raise ZeroDivisionError("a broken row")

    monkeypatch.setattr(prediction, "collate", broken)
    with pytest.raises(ZeroDivisionError, match="a broken row"):
        predict(scorer, task, encoded, ids, shown=False)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fb3-ahead")]


def test_at_the_deadline_what_was_begun_is_fetched_and_no_more_is_begun(parts, begun_ahead, monkeypatch):
    scorer, task, encoded, ids = parts
    happened = noted(monkeypatch)
    begin, until = prediction._begin, 3600.0
    now = [until - 1]

    def third_is_slow(*arguments):
        result = begin(*arguments)
        now[0] += len(happened) > 2
        return result

    monkeypatch.setattr(prediction, "_begin", third_is_slow)
    monkeypatch.setattr(prediction, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reached = predict(scorer, task, encoded, ids, token_budget=300, until=until, shown=False)
    begun = [number for what, number in happened if what == "begun"]
    assert begun == [number for what, number in happened if what == "fetched"] == [0, 1, 2]
    assert 0 < len(reached.ids) < len(ids)
    assert np.isfinite(reached.values).all()
