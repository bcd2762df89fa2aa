import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.checkpoint import load_fold
from fb3.essays import read_essays
from fb3.models import load_tokenizer
from fb3.prediction import lower_weights, predict
from fb3.recipe import load_recipe
from fb3.tasks import build_task
from fb3.tokens import tokenise


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
