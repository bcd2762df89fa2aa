"""Competitions: defaults laid under a recipe."""

import pytest
import yaml

from fb3.errors import Fb3Error
from fb3.recipe import Recipe, builtin_names, builtin_text, load_competition, load_recipe
from tests.builtin import OF_TEXTS

NAMES = [
    *("aes2", "commonlit-readability", "commonlit-summaries", "detect-ai-text", "emoji", "feedback-effectiveness"),
    *("feedback-ell", "jigsaw-toxicity", "text-classification", "us-patent", "wechat-2022"),
]


def written(path, text):
    path.write_text(text)
    return path


def test_every_recipe_trains_for_every_competition():
    assert builtin_names("competition") == NAMES
    for name in NAMES:
        text = builtin_text(name, "competition")
        assert text.startswith("# ")
        assert {*yaml.safe_load(text)} <= {"competition", "data", "folds", "task", "metric", "decision"}
        for recipe in OF_TEXTS:
            merged, competition = load_recipe(recipe, competition=name), load_competition(name)
            assert (merged.task, merged.metric, merged.folds.group_column) == (
                competition.task,
                competition.metric,
                competition.folds.group_column,
            )
            assert merged.model == load_recipe(recipe).model


@pytest.mark.parametrize("recipe", OF_TEXTS)
def test_feedback_ell_is_the_defaults(recipe):
    merged = load_recipe(recipe, competition="feedback-ell")
    assert merged.competition == "feedback-prize-english-language-learning"
    assert merged == load_recipe(recipe, ["competition=feedback-prize-english-language-learning"])


def test_the_order_is_defaults_competition_recipe_overrides(tmp_path):
    below = written(
        tmp_path / "c.yaml",
        "competition: some-slug\ndata: {id_column: key, text_column: words, max_length: 99}\n"
        "train: {epochs: 7, batch_size: 3}\noptimizer: {kind: adamw, encoder_rate: 0.5}\n"
        "task: {kind: regression, loss: mse, minimum: 0, maximum: 9}\n",
    )
    recipe = written(tmp_path / "r.yaml", "data: {max_length: 512}\ntrain: {epochs: 5}\noptimizer: {kind: adafactor}")
    found = load_recipe(recipe, ["train.batch_size=2"], competition=below)
    assert (found.data.id_column, found.data.text_column, found.competition) == ("key", "words", "some-slug")
    assert (found.data.max_length, found.train.epochs) == (512, 5), "given in the recipe, though they are the defaults"
    assert (found.train.batch_size, found.train.seed) == (2, Recipe().train.seed)
    assert (found.optimizer.kind, found.task.maximum) == ("adafactor", 9)
    assert found.optimizer.encoder_rate == 0.5
    other = written(tmp_path / "other.yaml", "task: {kind: binned}")
    assert load_recipe(other, competition=below).task.maximum == 5, "another kind drops the competition's group"
    same = written(tmp_path / "same.yaml", "task: {maximum: 4}")
    assert load_recipe(same, competition=below).task.loss == "mse"
    again = written(tmp_path / "again.yaml", found.to_yaml())
    assert load_recipe(again) == found


@pytest.mark.parametrize(
    ("competition", "recipe", "words"),
    [
        ("aes", "", "no built-in competition 'aes'; did you mean 'aes2'"),
        ("tiny", "", "no built-in competition 'tiny'; that is a recipe: it stands first, and --competition names"),
        ("nowhere/mine.yaml", "", "nowhere/mine.yaml: no such competition file"),
        ("data: {id_colum: x}", "", "c.yaml: unknown key data.id_colum; did you mean 'data.id_column'"),
        ("aes2", "metrics: qwk", "r.yaml on competition aes2: unknown key metrics; did you mean 'metric'"),
        ("aes2", "competition: some-slug", "r.yaml: is a recipe for the competition some-slug; leave --competition"),
        ("aes2", "competition: us-patent", "leave --competition aes2 out"),
        ("text-classification", "competition: aes2", "holds Kaggle's name, learning-agency-lab-automated-essay"),
        ("aes2", Recipe().to_yaml(), "r.yaml: gives every setting of --competition aes2 itself; leave that out"),
        ("competition: A/b", "", "competition: want the end of its address on Kaggle"),
        ("aes2", "task: {kind: classification, minimum: 0}", "r.yaml on competition aes2: task.minimum: belongs to"),
        ("aes2", "[1]", "r.yaml: a recipe is a mapping of groups, got list"),
    ],
)
def test_mistakes_name_their_source_and_the_mend(tmp_path, competition, recipe, words):
    below = written(tmp_path / "c.yaml", competition) if ": " in competition else competition
    with pytest.raises(Fb3Error) as error:
        load_recipe(written(tmp_path / "r.yaml", recipe), competition=below)
    assert words in str(error.value)


def test_a_competition_in_the_place_of_a_recipe_is_told():
    with pytest.raises(Fb3Error, match="no built-in recipe 'aes2'; that is a competition: name a recipe, such as tiny"):
        load_recipe("aes2")
