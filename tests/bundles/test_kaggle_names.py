"""Names of data sets, notebooks and files: what Kaggle refuses is refused before the first byte goes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.bundles.kaggle_names import check_file_names, check_reference, dataset_metadata, default_slug, safe_file_name
from fb3.errors import Fb3Error


@pytest.mark.parametrize(
    ("id", "title", "words"),
    [
        ("fb3", None, "owner/slug"),
        ("me/fb3", None, "has 3 characters"),
        ("me/with space", None, "such as me/with-space"),
        ("me/fb3_MiniLM", None, "such as me/fb3-minilm"),
        ("my name/a-good-slug", None, "the owner as in the address"),
        ("me/a-good-slug-", None, "no hyphen at its ends, such as me/a-good-slug"),
        ("me/-a-good-slug", None, "no hyphen at its ends"),
        ("me/a/good-slug", None, "owner/slug"),
        ("me/a-good-slug", "x" * 51, "51 characters"),
        ("me/a-good-slug", "", "0 characters"),
        ("me/a-good-slug", " " * 8, "--title '        ': want one line without spaces at its ends"),
        ("me/a-good-slug", "two\nlines", "want one line"),
    ],
)
def test_what_kaggle_would_refuse(id, title, words):
    with pytest.raises(Fb3Error, match=re.escape(words)):
        dataset_metadata(id, title)


def test_metadata():
    assert dataset_metadata("Some-One/a-good-slug", "A title (v2)") == {
        "id": "Some-One/a-good-slug",
        "title": "A title (v2)",
        "licenses": [{"name": "other"}],
    }


@given(st.text())
def test_any_folder_gives_a_slug_and_a_name_that_kaggle_takes(name):
    assert dataset_metadata(f"me/{default_slug(name)}", None)
    assert check_reference(f"me/{default_slug(name)}", "--id") == default_slug(name)
    safe = safe_file_name(name)
    check_file_names([safe])
    assert safe_file_name(safe) == safe
    assert not safe.startswith(".")


@pytest.mark.parametrize("name", ["minilm", "exp-2e-5", "v3_large.f0"])
def test_names_that_kaggle_takes_stay(name):
    assert safe_file_name(name) == name


def test_a_file_that_kaggle_refuses_is_named():
    with pytest.raises(Fb3Error, match=r"runs/a&b/oof\.csv: Kaggle refuses the character '&'"):
        check_file_names(["runs/a/oof.csv", "runs/a&b/oof.csv"])
