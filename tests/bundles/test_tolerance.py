import pandas as pd
import pytest

from fb3.bundles.tolerance import target_scale, tolerance
from fb3.recipe import load_recipe
from fb3.runs.run_folder import Member


def member_of(run, **task):
    recipe = load_recipe(run / "recipe.yaml")
    return Member("m", run, recipe.model_copy(update={"task": recipe.task.model_copy(update=task)}), [])


def test_the_tolerance_is_that_of_scores_from_1_to_5_in_proportion(run, tmp_path):
    assert target_scale(member_of(run)) == 1
    assert tolerance(member_of(run), "bf16").largest == 0.05
    assert target_scale(member_of(run, minimum=0.0, maximum=2.0)) == 0.5
    oof = pd.read_csv(run / "oof.csv")
    spread = oof.filter(like="true_").std(ddof=0).max()
    open_range = member_of(run, minimum=-1e6, maximum=1e6)
    assert target_scale(open_range) == pytest.approx(2 * spread)
    assert 1 < target_scale(open_range) < 2
