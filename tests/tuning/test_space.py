"""Search spaces: what is read, what is refused, and the way from parameters to recipes and back."""

import pytest

from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.tuning.space import Choice, Range, read_space
from tests.builtin import OF_TEXTS

REGULARISE = "regularise: {overrides: true, choices: [[], ['model.dropout=0.1', 'task.r_drop={alpha: 1.0}']]}"


def space_of(folder, text):
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(path)


def test_the_default_space_fits_the_built_in_recipes():
    space = read_space("default")
    for name in OF_TEXTS:
        space.fitting(load_recipe(name)).check(load_recipe(name))
    base = load_recipe("minilm-l6")
    space = space.fitting(base)
    assert space.locate(base, base)["optimizer.encoder_rate"] == pytest.approx(1e-4)
    assert space.locate(load_recipe("tiny"), load_recipe("tiny")) is None  # its rate of 2e-3 lies outside


def test_the_default_space_leaves_out_what_a_base_has_no_place_for():
    space, keys = read_space("default"), {}
    for kind in ("regression", "binned", "ordinal"):
        base = load_recipe("minilm-l6", [f"task.kind={kind}"])
        fitting = space.fitting(base)
        fitting.check(base)
        assert fitting.locate(base, base) is not None
        keys[kind] = set(fitting.entries)
    assert keys["regression"] - keys["binned"] == {"task.loss", "correlation"}
    assert keys["binned"] - keys["regression"] == {"task.smoothing"}
    assert keys["ordinal"] - keys["regression"] == {"task.squeeze"}
    assert keys["regression"] >= {"optimizer.encoder_rate", "averaging", "augmentation", "data.text.statistics"}


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("task.knid=binned", "train.epochs: when: unknown key task.knid"),
        ("binned", "train.epochs: when: want key.sub=value, got 'binned'"),
        ("task.kind=binned", "every entry has a `when` that the base recipe does not meet"),
    ],
)
def test_a_when_that_is_wrong_or_leaves_nothing(tmp_path, when, words):
    space = space_of(tmp_path, f"train.epochs: {{low: 1, high: 3, when: {when}}}")
    with pytest.raises(Fb3Error, match=words):
        space.fitting(load_recipe("tiny"))


def test_numbers_are_whole_where_they_are_written_so():
    assert Range(low=1, high=4).whole
    assert not Range(low=1, high=4.0).whole
    assert not Range(low=1, high=4, step=0.5).whole
    assert Range(low="3e-5", high="3e-4", log=True).low == 3e-5  # as YAML reads it
    assert Range(low=1, high=9, step=2).holds(3)
    assert not Range(low=1, high=9, step=2).holds(4)
    assert not Range(low=1, high=9).holds(2.5)
    assert Range(low=0.8, high=1.0, step=0.05).holds(0.9)


def test_parameters_become_a_recipe_and_come_back(tmp_path):
    text = f"""
optimizer.encoder_rate: {{low: 1e-5, high: 1e-3, log: true}}
train.epochs: {{low: 1, high: 3}}
tricks: {{choices: [[], [{{kind: fgm, epsilon: 1.0e-5}}]]}}
data.augment: {{choices: [null, {{mask: 0.1}}]}}
{REGULARISE}
"""
    space, base = space_of(tmp_path, text), load_recipe("tiny")
    space.check(base)
    drawn = {
        "optimizer.encoder_rate": 0.00012345678,
        "train.epochs": 2,
        "tricks": "[{kind: fgm, epsilon: 1.0e-05}]",
        "data.augment": "null",
        "regularise": "model.dropout=0.1 task.r_drop={alpha: 1.0}",
    }
    recipe = load_recipe("tiny", space.overrides(drawn))
    assert recipe.optimizer.encoder_rate == 0.000123457
    assert (recipe.train.epochs, recipe.tricks[0].epsilon, recipe.data.augment) == (2, 1e-5, None)
    assert (recipe.model.dropout, recipe.task.r_drop.alpha) == (0.1, 1.0)
    assert space.locate(base, recipe) == {**drawn, "optimizer.encoder_rate": 0.000123457}
    assert space.locate(base, load_recipe("tiny", ["train.epochs=4"])) is None
    assert space.locate(base, load_recipe("tiny", ["optimizer.encoder_rate=1e-4", "train.batch_size=2"])) is None


def test_a_choice_alone_may_break_a_rule_that_another_mends(tmp_path):
    text = "model.dropout: {choices: [0.0, 0.1]}\ntask.r_drop: {choices: [null, {alpha: 1.0}]}"
    space_of(tmp_path, text).check(load_recipe("tiny"))


@pytest.mark.parametrize("base", [[], ["optimizer.kind=adafactor"], ["schedule.kind=polynomial"]])
def test_kinds_and_their_settings_may_be_searched_side_by_side(tmp_path, base):
    text = """
schedule.kind: {choices: [cosine, polynomial, cosine_restarts]}
schedule.power: {low: 1.0, high: 4.0}
schedule.cycles: {low: 0.5, high: 3.0}
optimizer.kind: {choices: [adamw, adafactor, madgrad]}
optimizer.bias_correction: {choices: [true, false]}
"""
    space, base = space_of(tmp_path, text), load_recipe("tiny", base)
    space.check(base)
    found = space.locate(base, base)
    assert (found["schedule.kind"], found["optimizer.kind"]) == (base.schedule.kind, base.optimizer.kind)
    assert load_recipe("tiny", space.overrides(found)).optimizer.kind == base.optimizer.kind


def test_a_choice_that_sets_nothing_is_named():
    assert list(Choice(choices=[[], ["train.epochs=2"]], overrides=True).labelled) == ["unchanged", "train.epochs=2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a space is a mapping"),
        ("train.epochs: [", "not YAML"),
        ("train.epochs: 3", "train.epochs: want {low, high} or {choices"),
        ("train.epochs: {low: 1}", "train.epochs: high: missing, and it has no default"),
        ("train.epochs: {low: 3, high: 3}", "low 3 must lie below high 3"),
        ("train.epochs: {low: a, high: 3}", "train.epochs: low: want a number, got 'a'"),
        ("train.epochs: {low: true, high: 3}", "low: want a number, got True"),
        ("train.epochs: {low: 1, hihg: 3}", "did you mean 'high'"),
        ("train.epochs: {low: 0, high: 3, log: true}", "log wants low above 0"),
        ("train.epochs: {low: 1, high: 3, log: true, step: 1}", "give log or step"),
        ("train.epochs: {low: 1, high: 4, step: 2}", "steps of 2 do not lead from 1 to 4"),
        ("train.epochs: {choices: [1]}", "at least 2"),
        ("train.epochs: {choices: [1, 1]}", "stands there twice"),
        ("x: {choices: [[], train.epochs=2], overrides: true}", "a list of key=value"),
        ("train.epoch: {low: 1, high: 3}", "unknown key train.epoch; did you mean 'train.epochs'"),
        ("encoder_rate: {low: 1, high: 3}", "did you mean 'optimizer.encoder_rate'"),
        ("regularise: {choices: [[], [train.epochs=2]]}", "wants overrides: true"),
        ("x: {choices: [[], [train.epoch=2]], overrides: true}", "x: unknown key train.epoch"),
        ("x: {choices: [[], [train.epochs]], overrides: true}", "want key.sub=value"),
        ("x: {choices: [[], [train.epochs=2, train.epochs=3]], overrides: true}", "sets train.epochs twice"),
        ("task.loss: {choices: [mse, mae]}", "task.loss: overrides task.loss=mae"),
        ("train.epochs: {low: 1.0, high: 2.5}", "valid integer"),
        ("folds.count: {choices: [4, 5]}", "folds.count must not change within a search"),
        ("x: {choices: [[], ['data={sample: 9}']], overrides: true}", "data must not change"),
        (f"{REGULARISE}\nmodel.dropout: {{choices: [0.0, 0.2]}}", "both set model.dropout"),
        (f"{REGULARISE}\ntask: {{choices: [{{loss: mse}}, {{loss: rmse}}]}}", "task must not change"),
    ],
)
def test_a_wrong_space_is_refused_by_file_and_key(tmp_path, text, words):
    with pytest.raises(Fb3Error) as error:
        space_of(tmp_path, text).check(load_recipe("tiny"))
    assert words in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}: ")


def test_unknown_spaces():
    with pytest.raises(Fb3Error, match=r"no such space; give a YAML file or a built-in one, default"):
        read_space("defualt")
