"""The words for two trainings that differ."""

from fb3.recipe import load_recipe
from fb3.runs.identity import Identity


def test_recipes_that_differ_in_much_are_told_by_their_first_settings():
    one, other = (Identity(load_recipe(name), {"train.csv": name}) for name in ("tiny", "deberta-v3-large-fgm"))
    told = one.differences(other)
    assert told.startswith("recipe (model.backbone: 'microsoft/deberta-v3-large' there, 'scratch' here; ")
    assert told.endswith(" more), train.csv")
    assert told.count(";") == 5
    assert len(told) < 500
    assert one.differences(one) == ""
