import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fb3.data.tokenizer import special_tokens
from fb3.data.tokens import tokenise
from fb3.data.truncation import end_paragraphs, share_room, truncate
from fb3.errors import Fb3Error
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 300)


def test_tokens_are_those_of_transformers(tokenizer, texts):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **SPECIAL)
    for limit in (16, 64, 4096):
        ours = tokenise([*texts, ""], tokenizer, 0, DataSettings(max_length=limit))
        expected = theirs([*texts, ""], truncation=True, max_length=limit)["input_ids"]
        assert [row.tolist() for row in ours.rows] == expected


@pytest.mark.parametrize("how", ["head", "tail", "head_tail"])
def test_truncation_keeps_special_tokens_and_the_named_end(tokenizer, texts, how):
    whole = tokenise(texts[:1], tokenizer, 0, DataSettings(max_length=4096)).rows[0]
    cut = tokenise(texts[:1], tokenizer, 0, DataSettings(max_length=21, truncation=how)).rows[0]
    assert len(cut) == 21
    assert (cut[0], cut[-1]) == (whole[0], whole[-1])
    inner = whole[1:-1]
    expected = {"head": inner[:19], "tail": inner[-19:], "head_tail": np.concatenate([inner[:10], inner[-9:]])}
    assert cut[1:-1].tolist() == expected[how].tolist()


@given(st.lists(st.integers(), max_size=30), st.integers(1, 30), st.sampled_from(["head", "tail", "head_tail"]))
def test_truncate_never_exceeds_the_room_and_leaves_short_texts(ids, room, how):
    cut = truncate(ids, room, how)
    assert len(cut) == min(len(ids), room)
    if len(ids) <= room:
        assert cut == ids


def test_no_room_beside_special_tokens(tokenizer):
    assert tuple(map(len, special_tokens(tokenizer))) == (1, 1)
    assert all(len(row) == 8 for row in tokenise(["word " * 50], tokenizer, 0, DataSettings(max_length=8)).rows)


def two_texts(first=1.0, second=1.0, **settings):
    parts = [{"column": "full_text", "share": first}, {"column": "prompt", "share": second}]
    return DataSettings(text={"parts": parts}, **settings)


ROBERTA = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))  # two separators between two texts


@pytest.mark.parametrize("post_processor", [None, ROBERTA])
def test_pairs_are_those_of_transformers_and_the_longer_text_gives_way(texts, post_processor):
    """Transformers' longest_first takes tokens from the longer text until both are equal: equal shares do the same."""
    tokenizer = train_tokenizer(texts, 300)
    if post_processor:
        tokenizer.post_processor = post_processor
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **SPECIAL)
    pairs = [(texts[0], texts[1][:60]), (texts[2][:30], texts[3]), (texts[4], texts[5]), ("", texts[6]), ("", "")]
    for limit in (25, 64, 4096):
        ours = tokenise(pairs, tokenizer, 0, two_texts(max_length=limit))
        expected = theirs(*map(list, zip(*pairs, strict=True)), truncation="longest_first", max_length=limit)[
            "input_ids"
        ]
        for mine, other in zip(ours.rows, expected, strict=True):
            assert len(mine) == len(other)
            assert abs(int(np.flatnonzero(mine == 3)[0]) - other.index(3)) <= 1  # the odd token
        if limit == 4096:
            assert [row.tolist() for row in ours.rows] == expected


def test_a_text_may_keep_its_tail_beside_others_that_keep_their_heads(tokenizer):
    parts = [{"column": "full_text"}, {"column": "ocr", "truncation": "tail"}]
    texts = ["a b c d e f g h i j", "k l m n o p q r s t"]
    rows = [
        tokenise([tuple(texts)], tokenizer, 0, DataSettings(text={"parts": each}, max_length=13)).rows[0].tolist()
        for each in (parts, [{"column": "full_text"}, {"column": "ocr"}])
    ]
    title, ocr = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    assert rows[0] == [2, *title[:5], 3, *ocr[-5:], 3]
    assert rows[1] == [2, *title[:5], 3, *ocr[:5], 3]


def test_each_of_three_texts_keeps_its_share_and_takes_what_others_leave(tokenizer):
    names = ("full_text", "prompt", "title")
    parts = [{"column": name, "share": share} for name, share in zip(names, (3, 1, 1), strict=True)]
    data = DataSettings(text={"parts": parts}, max_length=24)  # 20 beside [CLS] and three [SEP]
    for lengths, kept in (
        ((90, 90, 90), (12, 4, 4)),
        ((90, 90, 2), (14, 4, 2)),
        ((2, 90, 90), (2, 9, 9)),
        ((5, 0, 9), (5, 0, 9)),
    ):
        row = tokenise([tuple("a " * length for length in lengths)], tokenizer, 0, data).rows[0].tolist()
        assert row[0] == 2
        assert tuple(len(part.split()) for part in " ".join(map(str, row[1:])).split("3")[:3]) == kept


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0.01, 9)), min_size=1, max_size=5), st.integers(1, 90))
def test_no_room_is_left_unused_and_no_text_gets_less_than_its_share(texts, room):
    lengths, shares = zip(*texts, strict=True)
    rooms = share_room(lengths, shares, room)
    assert sum(rooms) == min(room, sum(lengths))
    for length, share, got in zip(lengths, shares, rooms, strict=True):
        assert min(length, int(room * share / sum(shares) - 1e-9)) <= got <= length


PARAGRAPHS = {
    "blank lines": "\nTitle\n\none two three\nfour five six\n \n\nlast words here\n",
    "line breaks": "Title\none two three four five six\n  last words here",
    "tokens": "Title [BR] one two three four five six [BR] last words here [BR]",
}
SPLITTERS = [pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=True)]


@pytest.mark.parametrize("form", PARAGRAPHS)
@pytest.mark.parametrize("splitter", SPLITTERS, ids=lambda splitter: type(splitter).__name__)
def test_the_last_paragraph_stays_whole_and_the_beginning_fills_the_room(form, splitter):
    """Tokens begin with the white space before their word, or stand for it, or leave it out."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[BR]": 1}, "[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Replace(Regex(r"\s+"), " "), splitter
    tokenizer.add_special_tokens(["[BR]"])
    first, last = end_paragraphs(PARAGRAPHS[form].removesuffix(" [BR]"), tokenizer)
    assert 1 <= first <= 2  # an empty token of the first line break
    assert 3 <= last <= 4  # and of the last one
    row = tokenise([PARAGRAPHS[form]], tokenizer, 0, DataSettings(max_length=8, truncation="paragraphs")).rows[0]
    assert len(row) == 8
    assert end_paragraphs(" One paragraph alone. \n", tokenizer) is None


@pytest.mark.parametrize(
    ("room", "first", "last", "head", "tail"),
    [(9, 1, 3, 6, 3), (5, 4, 3, 3, 2), (5, 1, 9, 1, 4), (5, 9, 1, 4, 1), (1, 2, 2, 1, 0), (4, 2, 2, 2, 2)],
)
def test_first_and_last_paragraph_share_what_is_too_short_for_both(room, first, last, head, tail):
    ids = list(range(20))
    assert truncate(ids, room, "paragraphs", (first, last)) == ids[:head] + ids[20 - tail :]
    assert truncate(ids, room, "paragraphs") == truncate(ids, room, "head_tail")


def test_a_tokenizer_without_a_separator_is_refused(texts):
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(Fb3Error, match=r"no separator between two texts; take data\.text\.template in its place"):
        tokenise([("a", "b")], tokenizer, 0, two_texts())


def test_no_room_for_several_texts(tokenizer):
    parts = [{"column": name} for name in ("full_text", "b", "c", "d")]
    data = DataSettings(text={"parts": parts}, max_length=8)  # 5 special tokens, 3 for four texts
    with pytest.raises(Fb3Error, match="no room in 8 tokens beside 5"):
        tokenise([("a",) * 4], tokenizer, 0, data)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.text.parts=[{column: full_text}]"], "data.text.parts: .*at least 2 items"),
        (["data.text.parts=[{column: full_text}, {column: full_text}]"], "parts: each column once"),
        (["data.text.parts=[{column: a}, {column: b}]"], "text.parts leaves text_column 'full_text' out"),
        (["data.text.parts=[{column: full_text}, {column: text_id}]"], "text.parts names the id column"),
        (
            [PAIR := "data.text.parts=[{column: full_text}, {column: b}]", "data.text.template='{b}'"],
            "both join columns",
        ),
        ([PAIR, "data.windows={length: 32}"], "windows cut one text; leave them or text.parts out"),
        ([PAIR, "data.augment={mask: 0.1}"], "augment changes one text; leave it or text.parts out"),
        ([PAIR, "task.uda={file: u.csv, augment: {mask: 0.1}}"], "uda.augment changes one text"),
    ],
)
def test_bad_settings_of_several_texts(overrides, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", overrides)
