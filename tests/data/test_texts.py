"""What happens to a text before the tokenizer."""

import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fb3.data.augmentation.text_changes import mistyped, replaced, shuffled
from fb3.data.text_statistics import text_statistics
from fb3.data.texts import _CONTROL, _decoded, input_texts, repaired
from fb3.data.tokenizer import added_tokens, check_tokenizer
from fb3.errors import Fb3Error
from fb3.models.from_scratch import train_tokenizer
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings, TextSettings

TARGETS = {"target_columns": ("syntax", "grammar")}


def prepared(text, **settings):
    return input_texts(pd.DataFrame({"full_text": [text]}), DataSettings(text=TextSettings(**settings)))[0]


def test_a_text_is_left_alone_unless_asked():
    assert prepared(" As it\n stands\x00 ") == " As it\n stands\x00 "
    assert added_tokens(DataSettings()) == []


def test_columns_are_joined_by_a_template():
    essays = pd.DataFrame({"full_text": ["Body {x}"], "title": ["Head"]})
    data = DataSettings(text=TextSettings(template="{title}\n{full_text}"))
    assert input_texts(essays, data) == ["Head\nBody {x}"]
    assert data.text_columns() == ("full_text", "title")


@pytest.mark.parametrize("bad", ["no column", "{}", "{a!r}", "{full_text:10}", "{a.b}", "{title}"])
def test_a_template_of_something_else_is_refused(bad):
    with pytest.raises(Fb3Error, match="template"):
        load_recipe("tiny", [f"data.text.template='{bad}'"])


def test_newlines_and_capitals_become_tokens():
    assert prepared("One\n\n two \nthree\n", newlines=True) == "One [BR] two [BR] three"
    assert prepared("I saw NASA and (Bob) at O'Neil", capitals=True).split() == (
        ["[CAP]", "I", "saw", "[UP]", "NASA", "and", "(", "[CAP]", "Bob)", "at", "[CAP]", "O'", "[CAP]", "Neil"]
    )
    both = prepared("Hi\nYOU", newlines=True, capitals=True)
    assert both.split() == ["[CAP]", "Hi", "[BR]", "[UP]", "YOU"]


@given(st.text())
def test_what_is_utf8_read_as_windows_1252_is_undone(text):
    plain = "".join(c for c in text if c.isprintable())
    garbled = "".join(bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in plain.encode("utf-8"))
    if not any(c.isspace() for c in garbled):  # a garbled word with a space in it is two words
        assert repaired(garbled) in {plain, repaired(plain)}


@pytest.mark.parametrize("right", ["", "café naïve — “quoted” 5 € ½", "日本語", "a\tb\nc"])
def test_what_is_right_stays(right):
    assert repaired(right) == right


def test_repair_of_what_essays_hold():
    assert repaired("donâ€™t â€œsayâ€\x9d\x07 itâ€”now") == "don’t “say” it—now"


def test_capitals_are_for_tokenizers_that_lose_them(texts):
    cased = Tokenizer.from_str(train_tokenizer(texts, 300).to_str())
    with pytest.raises(Fb3Error, match="capitals"):
        check_tokenizer(cased, DataSettings(text=TextSettings(capitals=True)))
    check_tokenizer(cased, DataSettings())


def test_tokens_of_targets():
    data = DataSettings(text=TextSettings(prompt="tokens", newlines=True), **TARGETS)
    assert added_tokens(data) == ["[BR]", "[SYNTAX]", "[GRAMMAR]"]
    with pytest.raises(Fb3Error, match="prompt"):
        load_recipe("tiny", ["model.pooling.kind=target_tokens"])


# Letters of each kind that the patterns tell apart, garbled words, and spaces that are not ASCII.
PIECES = st.sampled_from(
    ["a", "Z", "é", "â€™", "Ã\xa0", "\xa0", "\u3000", "\x85", "\x1c", " ", "\n", "\r", "\x00", "'", "日"]
)
MIXED = st.lists(PIECES | st.characters(exclude_categories=["Cs"]), max_size=40).map("".join)


@settings(deadline=None, max_examples=1000)
@given(MIXED)
def test_linear_patterns_find_what_the_plain_ones_find(text):
    assert repaired(text) == _CONTROL.sub("", re.sub(r"\S*[^\x00-\x7f]\S*", _decoded, text))
    assert prepared(text, newlines=True) == re.sub(r"\s*\n\s*", " [BR] ", text.strip())


def seconds(do, text):
    start = time.process_time()
    do(text)
    return time.process_time() - start


RNG = np.random.default_rng(0)
WORKS = {
    "repair": repaired,
    "newlines": lambda text: prepared(text, newlines=True),
    "capitals": lambda text: prepared(text, capitals=True),
    "statistics": lambda text: text_statistics([text]),
    "shuffle": lambda text: shuffled(text, RNG),
    "typos": lambda text: mistyped(text, 0.1, RNG),
    "synonyms": lambda text: replaced(text, {"a": ["b"]}, 0.5, RNG),
}
HARD = ["a", " ", "é", "\xa0", "a'", "'", "aé", " \t", "\n ", "\n", ".", ". ", "[a", "a]", "a1", "1a_", "A", ", "]


@pytest.mark.parametrize("work", WORKS)
def test_no_text_takes_longer_than_by_its_length(work):
    WORKS[work]("x")
    for hard in HARD:
        for start in ("x", "é", "a\n"):  # a start that no shortcut fits, and that keeps whitespace from being stripped
            text = start + hard * (30_000 // len(hard)) + "x"
            taken = min(seconds(WORKS[work], text) for _ in range(2))
            assert taken < 0.5, (start, hard)  # 0.02 s; a pattern that tries again at every letter takes 3 s
