import numpy as np
import pytest
from tokenizers import processors

from fb3.data.batches import collate
from fb3.data.masking import IGNORED
from fb3.data.pretraining_texts import cut_texts
from fb3.data.segments import SegmentPairs
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.pretraining import PretrainingSettings
from tests.models.families import make_tokenizers

LENGTH = 24


@pytest.fixture(scope="module", params=["wordpiece", "bytes", "pieces"])
def tokenizer(request, texts):
    """A tokenizer with its special tokens around a text."""
    made = make_tokenizers(texts)[request.param]
    ends = ("[CLS]", "[SEP]") if request.param == "wordpiece" else ("<s>", "</s>")
    made.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}",
        pair=f"{ends[0]} $A {ends[1]} $B {ends[1]}",
        special_tokens=[(end, made.token_to_id(end)) for end in ends],
    )
    return made


def cut(texts, tokenizer, *objectives, data=(), **more):
    settings = PretrainingSettings(
        objectives=[{"kind": kind} if isinstance(kind, str) else kind for kind in objectives or ["mlm"]],
        **{"length": LENGTH, **more},
    )
    data = load_recipe("tiny", data).data
    return cut_texts(texts, np.arange(len(texts)), tokenizer, 0, data, settings, seed=1)


def test_windows_hold_all_tokens_of_all_texts_in_order(tokenizer, texts):
    made = cut(["", *texts], tokenizer)
    assert max(map(len, made.rows)) <= LENGTH
    assert 0 not in made.texts
    for number, text in enumerate(texts, 1):
        mine = [row[1:-1] for row, owner in zip(made.rows, made.texts, strict=True) if owner == number]
        assert np.concatenate(mine).tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
    assert all((words[[0, -1]] == -1).all() for words in made.words)


def test_a_batch_has_labels_at_hidden_places_alone_and_another_draw_hides_others(tokenizer, texts):
    made, rows = cut(texts, tokenizer), np.arange(12)
    batch = collate(made, rows, np.zeros((len(made.rows), 0)))
    again = collate(made, rows, np.zeros((len(made.rows), 0)))
    assert (batch["labels"] != again["labels"]).any()
    plain = collate(cut(texts, tokenizer, "simcse"), rows, np.zeros((len(made.rows), 0)))
    hidden = batch["labels"] != IGNORED
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][hidden] == plain["input_ids"][hidden]).all()
    assert (batch["input_ids"][~hidden] == plain["input_ids"][~hidden]).all()
    assert not hidden[batch["attention_mask"] == 0].any()
    assert "labels" not in plain
    assert "targets" not in batch
    assert batch["group"].tolist() == made.texts[rows].tolist()


def test_the_generators_state_gives_the_same_draws_again(tokenizer, texts):
    made, rows = cut(texts, tokenizer, "mlm", "order"), np.arange(12)
    made.draw(rows)
    state = made.state_dict()
    one = made.draw(rows)
    made.load_state_dict(state)
    two = made.draw(rows)
    assert all((a == b).all() for a, b in zip(one[0], two[0], strict=True))
    assert all((one[1][name] == two[1][name]).all() for name in one[1])


def test_the_prompt_stands_before_each_window_and_is_never_hidden(tokenizer, texts):
    made = cut(
        texts, tokenizer, data=["data.text.prompt=names", "data.target_columns=[good, bad]"], masking={"share": 0.5}
    )
    prompt = tokenizer.encode("good, bad:", add_special_tokens=False).ids
    for row, words in zip(made.rows, made.words, strict=True):
        assert row[1 : 1 + len(prompt)].tolist() == prompt
        assert (words[: 1 + len(prompt)] == -1).all()


def test_texts_of_several_columns_are_joined_by_the_separator(tokenizer, texts):
    parts = ["data.text.parts=[{column: full_text}, {column: title}]"]
    made = cut([(texts[0], texts[1])], tokenizer, data=parts)
    pieces = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts[:2]]
    gap = tokenizer.encode("a", "b").ids
    inner = np.concatenate([row[1:-1] for row in made.rows]).tolist()
    assert inner[: len(pieces[0])] == pieces[0]
    assert inner[-len(pieces[1]) :] == pieces[1]
    assert set(inner[len(pieces[0]) : -len(pieces[1])]) <= {*gap}


@pytest.mark.parametrize("form", ["swapped", "next"])
def test_a_pair_is_a_window_cut_between_sentences_in_its_order_or_a_wrong_one(tokenizer, texts, form):
    made = cut(texts, tokenizer, {"kind": "order", "form": form}, length=60)
    plain = {row[1:-1].tobytes() for row in made.rows}
    separator = made.pairs.between.tolist()
    drawn = [made.draw(np.array([row])) for row in range(len(made.rows)) for _ in range(4)]
    right = np.array([more["order"][0] for _, more in drawn])
    chance = 0
    for (tokens,), more in drawn:
        assert len(tokens) <= 60
        inner = tokens[1:-1]
        cuts = [i for i in range(1, len(inner)) if inner[i : i + len(separator)].tolist() == separator]
        joined = {np.concatenate([inner[:i], inner[i + len(separator) :]]).tobytes() for i in cuts}
        turned = {np.concatenate([inner[i + len(separator) :], inner[:i]]).tobytes() for i in cuts}
        if more["order"][0] == 1:
            assert joined & plain
        elif form == "swapped":
            assert turned & plain
        else:
            chance += bool(joined & plain)
    assert chance < 0.05 * len(drawn)  # a sentence may occur twice
    share = (right == 1).mean()
    assert abs(share - 0.5) < 4 * (0.25 / len(right)) ** 0.5 + 0.03


def test_a_text_of_one_word_has_no_order():
    pairs = SegmentPairs("swapped", 1, 1, np.array([9]), np.array([7]), 20)
    window = np.array([8, 3, 4, 9]), np.array([-1, 0, 0, -1])
    ids, words, right = pairs.draw(window, rng=np.random.default_rng(0))
    assert right == IGNORED
    assert (ids == window[0]).all()
    assert (words == window[1]).all()


def test_what_cannot_be_cut_is_refused(tokenizer, texts):
    with pytest.raises(Fb3Error, match="no text to pretrain on"):
        cut(["", ""], tokenizer)
    with pytest.raises(Fb3Error, match="no room for text beside"):
        cut(texts, tokenizer, data=["data.text.prompt=names"], length=8)
