"""Statistics of texts: each counts what its name says; in the model they are standardised by the training essays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.data.text_statistics import NAMES, text_statistics
from fb3.models.statistics_net import NoStatistics, StatisticsNet


def of(text):
    return dict(zip(NAMES, text_statistics([text])[0].tolist(), strict=True))


TEXT = 'I think ,that  dogs don\'t bark. they said "no"!\n\nWHY? Because 2 dogs slept; i\nknow.'


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("words", 15),
        ("log_words", np.log(16)),
        ("sentences", 4),
        ("paragraphs", 2),
        ("line_breaks", 3 / 15),
        ("vocabulary", 13),  # dogs twice, I and i
        ("type_token_ratio", 13 / 15),
        ("guiraud", 13 / 15**0.5),
        ("word_letters", 57 / 15),
        ("long_words", 0),
        ("sentence_words", 16 / 4),
        ("commas", 1 / 15),
        ("full_stops", 2 / 15),
        ("apostrophes", 1 / 15),
        ("quotation_marks", 2 / 15),
        ("semicolons", 1 / 15),
        ("exclamation_marks", 1 / 15),
        ("question_marks", 1 / 15),
        ("digits", 1 / 15),
        ("space_before_mark", 1 / 15),
        ("no_space_after_mark", 1 / 15),
        ("wide_spaces", 1 / 15),
        ("capitals", 5 / 15),
        ("capitalised_words", 3 / 15),
        ("lower_case_i", 1 / 15),
        ("lower_case_starts", 1 / 4),
    ],
)
def test_counts(name, wanted):
    assert of(TEXT)[name] == pytest.approx(wanted, rel=1e-5)


CHINESE = "我喜欢学习，也喜欢「看书」。\n\n你呢？！我、他；都 OK。Really！"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("words", 15 + 2),
        ("sentences", 4),
        ("paragraphs", 2),
        ("vocabulary", 12 + 2),
        ("word_letters", (15 + 2 + 6) / 17),
        ("sentence_words", 17 / 4),
        ("sentence_words_std", np.std([10, 2, 4, 1])),
        ("commas", 2 / 17),
        ("full_stops", 2 / 17),
        ("quotation_marks", 2 / 17),
        ("semicolons", 1 / 17),
        ("exclamation_marks", 2 / 17),
        ("question_marks", 1 / 17),
        ("no_space_after_mark", 0),
        ("capitalised_words", 2 / 17),
    ],
)
def test_chinese_is_counted_by_its_letters_and_marks(name, wanted):
    assert of(CHINESE)[name] == pytest.approx(wanted, rel=1e-5)


def test_full_width_marks_are_latin_ones_beside_letters_without_spaces():
    chinese, mixed = (of(text) for text in ("他来了，我走了。真的？", "他来了,我走了.真的?"))
    assert chinese == mixed


@pytest.mark.parametrize(
    ("text", "words"), [("ฉันรักเธอ", 7), ("日本語です。はい！", 7), ("한국어 텍스트. 둘째", 3), ("Обычный текст", 2)]
)
def test_scripts_without_spaces_are_counted_by_letters_and_others_by_words(text, words):
    assert of(text)["words"] == words


def test_spread_is_that_of_words_and_sentences():
    found = of("One two three. Four five six. Seven eight nine.")
    assert found["sentence_words_std"] == 0
    assert found["word_letters_std"] == pytest.approx(np.std([3, 3, 5, 4, 4, 3, 5, 5, 4]), rel=1e-5)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_has_finite_statistics_of_its_own(texts):
    table = text_statistics(texts)
    assert table.shape == (len(texts), len(NAMES))
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    for text, row in zip(texts, table, strict=True):
        np.testing.assert_array_equal(text_statistics([text])[0], row)


def test_the_net_sees_what_is_standardised_by_the_training_essays():
    torch.manual_seed(0)
    table = np.random.default_rng(0).normal(50.0, 9.0, (40, len(NAMES))).astype(np.float32)
    table[:, 3] = 7.0  # the same in all essays
    net, moved = StatisticsNet(5), StatisticsNet(5)
    moved.load_state_dict(net.state_dict())
    net.fit(table)
    moved.fit(table * 2 + 1)
    pooled = torch.randn(40, 5)
    out = net(pooled, {"statistics": torch.from_numpy(table)})
    assert out.shape == (40, net.width)
    torch.testing.assert_close(out[:, :5], pooled)
    scaled = moved(pooled, {"statistics": torch.from_numpy(table * 2 + 1)})
    torch.testing.assert_close(out, scaled, rtol=1e-3, atol=1e-4)
    assert out[:, 5:].std(0).min() > 0


@pytest.mark.parametrize("same", [0.0, 1 / 3, 7.3, 1e4])
def test_what_is_the_same_in_all_training_essays_says_nothing_anywhere(same):
    table = np.random.default_rng(0).normal(50.0, 9.0, (400, len(NAMES))).astype(np.float32)
    table[:, 3] = same
    net, essays = StatisticsNet(1), torch.from_numpy(table[:2].copy())
    net.fit(table)
    usual = net(torch.zeros(2, 1), {"statistics": essays})
    essays[:, 3] += 5.0
    torch.testing.assert_close(net(torch.zeros(2, 1), {"statistics": essays}), usual, rtol=1e-3, atol=1e-3)
    assert net.std.half().isfinite().all()


def test_an_essay_beyond_all_others_is_held_near():
    net = StatisticsNet(1)
    far = [torch.full((1, len(NAMES)), value) for value in (1e3, 1e30)]
    one, two = (net(torch.zeros(1, 1), {"statistics": values}) for values in far)
    torch.testing.assert_close(one, two)


def test_without_statistics_the_vector_stays_alone():
    pooled = torch.randn(2, 3)
    assert NoStatistics(3)(pooled, {}) is pooled
    assert not NoStatistics(3).state_dict()
