import json
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fb3.data.masking import IGNORED, Vocabulary, choose_words, mask_tokens, read_vocabulary, words_of
from fb3.errors import Fb3Error
from fb3.models.from_scratch import SPECIAL
from fb3.recipe.pretraining import MaskingSettings
from tests.models.families import _MARKS, make_tokenizers

KINDS = ["tokens", "words", "ngrams", "spans"]
FAMILIES = ["wordpiece", "bytes", "pieces", "metaspace", "unsplit"]
# Words that are masked together vary more than single tokens: a run of n words as n² of them, tokens of a word too.
SPREAD = {"tokens": 1.0, "words": 3.0, "ngrams": 5.0, "spans": 14.0}


@pytest.fixture(scope="module")
def tokenizers(texts):
    """A tokenizer of each family, with [BR] added as a recipe adds it; `unsplit` never splits a text into words."""
    made = make_tokenizers(texts)
    made["metaspace"] = tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(_MARKS.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}  # Gemma's way: spaces become marks before
    made["unsplit"] = Tokenizer.from_str(json.dumps(content))
    made["unsplit"].normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")])
    made["wordpiece"].add_special_tokens(list(SPECIAL.values()))
    for tokenizer in made.values():
        tokenizer.add_special_tokens([AddedToken("[BR]", lstrip=True, normalized=False, special=True)])
    return made


def parts(tokenizer, text):
    encoding, vocabulary = tokenizer.encode(text, add_special_tokens=False), read_vocabulary(tokenizer)
    return np.array(encoding.ids, np.int32), words_of(encoding, vocabulary.special), vocabulary


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_the_ones_between_spaces(tokenizers, family):
    ids, words, _ = parts(tokenizers[family], "My friend went home, and so did I. [BR] Then we all went home.")
    encoding = tokenizers[family].encode("My friend went home, and so did I. [BR] Then we all went home.")
    for number in range(words.max() + 1):
        tokens = [encoding.tokens[place] for place in np.flatnonzero(words == number)]
        assert not any(token.startswith(("▁", "Ġ")) for token in tokens[1:])
        assert len(tokens) <= 8
    assert 12 <= words.max() + 1 <= 20
    assert (words == -1).sum() == 1
    assert tokenizers[family].id_to_token(int(ids[words == -1][0])) == "[BR]"
    assert all(np.diff(words[words >= 0]) >= 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_share_of_hidden_tokens_is_within_its_binomial_bounds(tokenizers, texts, family, kind):
    settings, rng = MaskingSettings(kind=kind), np.random.default_rng(0)
    chosen = masks = others = total = 0
    for text in texts:
        ids, words, vocabulary = parts(tokenizers[family], text.replace(". ", ". [BR] "))
        read, labels = mask_tokens(ids, words, settings, vocabulary, rng)
        hidden = labels != IGNORED
        assert (labels[hidden] == ids[hidden]).all()
        assert (read[~hidden] == ids[~hidden]).all()
        assert not np.isin(ids[hidden], vocabulary.special).any()
        changed = read[hidden & (read != ids)]
        assert not np.isin(changed[changed != vocabulary.mask], vocabulary.special).any()
        chosen, total = chosen + hidden.sum(), total + (words >= 0).sum()
        masks, others = masks + (changed == vocabulary.mask).sum(), others + (changed != vocabulary.mask).sum()
    assert total > 2000
    assert abs(chosen - 0.15 * total) < 4 * (SPREAD[kind] * 0.15 * 0.85 * total) ** 0.5
    assert abs(masks - 0.8 * chosen) < 4 * (0.16 * chosen) ** 0.5
    assert abs(others - 0.1 * chosen) < 4 * (0.09 * chosen) ** 0.5 + 0.01 * chosen  # some draw the token itself


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_hidden_whole_and_no_text_as_a_whole(tokenizers, texts, family):
    rng = np.random.default_rng(1)
    for kind in KINDS[1:]:
        for text in texts[:12]:
            ids, words, vocabulary = parts(tokenizers[family], text)
            hidden = mask_tokens(ids, words, MaskingSettings(kind=kind), vocabulary, rng)[1] != IGNORED
            for number in range(words.max() + 1):
                assert len(set(hidden[words == number])) == 1
            assert hidden.mean() < 0.6


@pytest.mark.parametrize(("kind", "chances"), [("ngrams", [6 / 11, 3 / 11, 2 / 11]), ("spans", None)])
def test_lengths_of_runs_have_their_distribution(kind, chances):
    if chances is None:
        chances = 0.2 * 0.8 ** np.arange(10)
        chances /= chances.sum()
    rng, lengths, starts, words = np.random.default_rng(2), [], [], 400
    for _ in range(500):
        hidden = choose_words(words, MaskingSettings(kind=kind), rng)
        starts.append(hidden)
        runs = [(flag, len(list(run))) for flag, run in groupby(hidden)][1:-1]  # the ends may cut a run
        lengths += [length for flag, length in runs if flag]
    counts = np.bincount(lengths, minlength=len(chances) + 1)
    assert len(counts) == len(chances) + 1
    assert counts[0] == 0
    share, number = counts[1:] / counts.sum(), counts.sum()
    assert (np.abs(share - chances) < 4 * (np.array(chances) / number) ** 0.5 + 0.01).all()
    # The beginning of a text is hidden as often as its middle and its end.
    by_place = np.array(starts, float).reshape(500, 4, 100).mean((0, 2))
    assert np.abs(by_place - 0.15).max() < 0.02


@given(
    st.integers(1, 30),
    st.sampled_from(KINDS),
    st.floats(0.01, 0.5),
    st.integers(0, 2**31),
)
def test_short_texts_and_any_share(count, kind, share, seed):
    ids, words = np.arange(10, 10 + count, dtype=np.int32), np.arange(count, dtype=np.int32) // 2
    words[::5] = -1
    vocabulary = Vocabulary(4, np.arange(5), np.arange(5, 100))
    settings = MaskingSettings(kind=kind, share=share)
    read, labels = mask_tokens(ids, words, settings, vocabulary, np.random.default_rng(seed))
    again, _ = mask_tokens(ids, words, settings, vocabulary, np.random.default_rng(seed))
    assert read.shape == labels.shape == ids.shape
    assert (read == again).all()
    assert (labels[words < 0] == IGNORED).all()


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(Fb3Error, match=r"neither \[MASK\] nor <mask>.*take simcse"):
        read_vocabulary(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
