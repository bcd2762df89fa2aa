"""Hidden rows: of the public files' form, and as odd as rows can be."""

import re

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.bundle import read_bundle
from fb3.recipe import load_recipe
from fb3.rehearsal.hidden_rows import ODD, PublicFiles, ids_like, invented_files, public_files, write_hidden_test


@pytest.fixture
def recipe(bundle):
    return read_bundle(bundle).members()[0].recipe


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_the_hidden_rows_are_as_bad_as_rows_can_be(recipe, competition, tmp_path):
    copies = write_hidden_test(competition, recipe, public_files(competition), tmp_path, 100)
    test, sample = read(tmp_path / "test.csv"), read(tmp_path / "sample_submission.csv")
    assert len(test) == 100
    assert set(test["text_id"]) == set(sample["text_id"])
    assert test["text_id"].tolist() != sample["text_id"].tolist()
    longest = pd.read_csv(competition / "train.csv")["full_text"].str.len().max()
    assert test["full_text"].str.len().max() >= 5 * longest
    assert "" in set(test["full_text"])
    assert len(copies) >= 10
    text = test.set_index("text_id")["full_text"]
    assert all(text[one] == text[two] for one, two in copies.items())


def test_the_hidden_rows_have_the_real_files_form(recipe, competition, tmp_path):
    """Integers as ids, a column that train.csv has and one that it lacks, scores of another form, other orders."""
    train = read(competition / "train.csv")
    train["words"] = [str(len(text.split())) for text in train["full_text"]]
    train.to_csv(tmp_path / "train.csv", index=False)
    test = pd.DataFrame({"words": ["3"], "full_text": ["a b c"], "text_id": ["17"], "site": ["north-1"]})
    targets = list(recipe.data.target_columns)[::-1]
    sample = pd.DataFrame({"text_id": ["17"], **dict.fromkeys(targets, "0")})
    write_hidden_test(tmp_path, recipe, PublicFiles(test, sample), tmp_path / "out", 60)
    hidden, wanted = read(tmp_path / "out" / "test.csv"), read(tmp_path / "out" / "sample_submission.csv")
    assert list(hidden.columns) == ["words", "full_text", "text_id", "site"]
    assert list(wanted.columns) == ["text_id", *targets]
    assert hidden["text_id"].str.fullmatch("[0-9]+").all()
    assert set(hidden["site"]) == {"north-1"}
    assert (wanted[targets] == "0").all(axis=None)
    whole = set(zip(train["full_text"], train["words"], strict=True))
    drawn = [pair for pair in zip(hidden["full_text"], hidden["words"], strict=True) if pair in whole]
    assert len(drawn) == 60 - len(ODD)


@pytest.mark.parametrize(
    ("real", "form"),
    [
        (["0000C359D63E", "000BAD50D026", "00367BB2546B"], "[0-9A-F]{12}"),
        (["0", "1", "2"], "0|[1-9][0-9]*"),
        (["0007", "0150"], "[0-9]{4}"),
        (["essay_1", "essay_2", "essay_3"], "essay_[0-9]+"),
        (["a0eebc99-9c0b", "b1f0bc98-9d0b"], "[0-9a-f]{8}-[0-9a-f]{4}"),
        (["x"], "[a-z][0-9]*"),
    ],
)
def test_hidden_ids_are_of_the_real_ones_form_and_each_there_once(real, form):
    made = ids_like(real, 300, np.random.default_rng(0))
    assert len(set(made)) == 300
    assert all(re.fullmatch(form, each) for each in made), made[:5]


def test_the_same_essay_on_another_topic_is_no_copy(competition, tmp_path):
    table = read(competition / "train.csv").assign(full_text="One essay for all topics.")
    table.assign(topic=[f"topic {n % 7} " * 9 for n in range(len(table))]).to_csv(tmp_path / "train.csv", index=False)
    recipe = load_recipe("tiny", ["data.text.template='On {topic}: {full_text}'"])
    copies = write_hidden_test(tmp_path, recipe, invented_files(recipe, tmp_path), tmp_path / "out", 60)
    topics = read(tmp_path / "out" / "test.csv").set_index("text_id")["topic"]
    assert copies
    assert all(topics[one] == topics[two] for one, two in copies.items())
