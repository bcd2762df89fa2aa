"""Tokenizers of many classes, from small vocabularies: each reads a text as sentencepiece does and marks its ends."""

import json

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from fb3.data.tokenizer import frequent_characters, special_tokens
from fb3.errors import Fb3Error
from fb3.models.backbone_files import Source
from fb3.models.backbone_tokenizer import backbone_tokenizer, check_frame, unknown_characters
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.recipe.data import DataSettings

FIVE = int(transformers.__version__.split(".")[0]) >= 5
BERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
DEBERTA = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
DEBERTA |= {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "user_defined_symbols": ["[MASK]"]}
XLNET = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
XLNET |= {"control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"]}
# Model type: the file's name, how sentencepiece is trained, what stands before and after a text.
SENTENCEPIECE = {
    "deberta-v2": ("spm.model", DEBERTA, ["[CLS]"], ["[SEP]"]),
    "big_bird": (
        "spiece.model",
        {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "control_symbols": ["[SEP]", "[CLS]", "[MASK]"]},
        ["[CLS]"],
        ["[SEP]"],
    ),
    "xlm-roberta": ("sentencepiece.bpe.model", FAIRSEQ, ["<s>"], ["</s>"]),
    "xlnet": ("spiece.model", XLNET, [], ["<sep>", "<cls>"]),
    "t5": ("spiece.model", T5, [], ["</s>"]),
}
BYTES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BYTE_PAIRS = {
    "roberta": (BYTES, ["<s>"], ["</s>"]),
    "longformer": (BYTES, ["<s>"], ["</s>"]),
    "deberta": (["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"], ["[CLS]"], ["[SEP]"]),
    "gpt2": (["<|endoftext|>"], [], []),
}
ODD = ["wait… so", "ﬁne", "Ａbc", "a\u00a0b", "a\tb", "a\n\nb", "a  b", "“q” ’s — x", "zero\u200bwidth"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    """Makes the folder of a model type that has vocabulary and config alone."""

    def make(model_type, **settings):
        place = tmp_path_factory.mktemp(model_type)
        (place / "config.json").write_text(json.dumps({"model_type": model_type}))
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
        return place

    return make


def trained(path, texts, settings):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path.with_suffix("")),
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def loaded(place):
    return backbone_tokenizer(Source(str(place), True), "model.backbone=it")


def ends(backend):
    return [[backend.id_to_token(number) for number in part] for part in special_tokens(backend)]


def pieces(tokenizer, text):
    """The tokens of a text, and None for each that is unknown."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [
        None if number == tokenizer.unk_token_id else name
        for number, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ]


@pytest.mark.parametrize("model_type", SENTENCEPIECE)
def test_a_sentencepiece_model_alone_reads_as_sentencepiece_does(model_type, folder, texts, tmp_path, capsys):
    name, settings, before, after = SENTENCEPIECE[model_type]
    place = folder(model_type)
    truth = trained(place / name, texts, settings)
    tokenizer = loaded(place)
    assert ends(tokenizer.backend_tokenizer) == [before, after]
    for text in [*ODD, *texts[:20]]:
        wanted = [None if n == truth.unk_id() else truth.id_to_piece(n) for n in truth.encode(text)]
        assert pieces(tokenizer, text) == wanted, text
    if FIVE and model_type == "deberta-v2":
        assert (
            f"transformers {transformers.__version__} leaves the normaliser of spm.model out" in capsys.readouterr().err
        )
    tokenizer.save_pretrained(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ends(saved) == [before, after]
    for text in ODD:
        assert saved.encode(text).ids == tokenizer.encode(text)


@pytest.mark.parametrize("model_type", BYTE_PAIRS)
def test_a_vocabulary_of_byte_pairs_marks_its_ends(model_type, folder, texts):
    from tokenizers import ByteLevelBPETokenizer

    special, before, after = BYTE_PAIRS[model_type]
    place = folder(model_type)
    maker = ByteLevelBPETokenizer()
    maker.train_from_iterator(texts, vocab_size=300, special_tokens=special, show_progress=False)
    maker.save_model(str(place))
    assert ends(loaded(place).backend_tokenizer) == [before, after]


@pytest.mark.parametrize("model_type", ["bert", "electra", "mobilebert"])
def test_a_vocabulary_of_word_pieces_marks_its_ends(model_type, folder, texts):
    place, vocabulary = folder(model_type), train_tokenizer(texts, 300).get_vocab()
    (place / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    assert ends(loaded(place).backend_tokenizer) == [["[CLS]"], ["[SEP]"]]


def test_a_tokenizer_json_keeps_its_normaliser(folder, texts, tmp_path):
    """Saves it in the form of version 4, whichever version reads it."""
    place = folder("deberta-v2", tokenizer_class="DebertaV2Tokenizer")
    trained(place / "spm.model", texts, DEBERTA)
    wanted = loaded(place)
    backend = wanted.backend_tokenizer
    (place / "spm.model").rename(tmp_path / "away")
    (place / "tokenizer.json").write_text(backend.to_str())
    tokenizer = loaded(place)
    assert "Precompiled" in str(tokenizer.backend_tokenizer.normalizer)[:400]
    for text in ODD:
        assert tokenizer.encode(text) == wanted.encode(text)


def without_ends(backend):
    tree = json.loads(backend.to_str())
    tree["post_processor"] = None
    return json.dumps(tree)


def test_ends_that_version_5_0_left_out_are_put_back(folder, texts, capsys):
    place = folder("deberta-v2")
    truth = trained(place / "spm.model", texts, DEBERTA)
    tokenizer = loaded(place)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert ends(backend) == [[], []]
    capsys.readouterr()
    check_frame(tokenizer, "model.backbone=it")
    assert capsys.readouterr().err.startswith("model.backbone=it: its tokenizer put no [CLS] and [SEP] around a text")
    first, second = truth.encode(texts[0]), truth.encode(texts[1])
    assert backend.encode(texts[0]).ids == [1, *first, 2]
    pair = backend.encode(texts[0], texts[1])
    assert pair.ids == [1, *first, 2, *second, 2]
    assert pair.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    check_frame(tokenizer, "model.backbone=it")
    assert capsys.readouterr().err == "", "nothing is said where nothing is done"


def test_a_tokenizer_that_leaves_its_ends_out_is_refused_and_one_that_has_none_is_not(folder, texts):
    place = folder("bert")
    tokenizer = train_tokenizer(texts, 300)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(place)
    assert ends(loaded(place).backend_tokenizer) == [["[CLS]"], ["[SEP]"]]
    (place / "tokenizer.json").write_text(without_ends(tokenizer))
    with pytest.raises(Fb3Error, match=r"model\.backbone=it: .* has \[CLS\] and \[SEP\] and puts none around a text"):
        loaded(place)
    kept = {name: token for name, token in SPECIAL.items() if name not in {"cls_token", "sep_token"}}
    other = folder("gpt2")
    plain = Tokenizer.from_str(without_ends(tokenizer))
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="[SEP]", **kept).save_pretrained(other)
    assert ends(loaded(other).backend_tokenizer) == [[], []]


def test_one_end_is_enough_where_a_template_says_so(folder, texts):
    place, tokenizer = folder("bert"), train_tokenizer(texts, 300)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(place)
    assert ends(loaded(place).backend_tokenizer) == [["[CLS]"], []]


def test_a_tokenizer_without_words_is_refused(folder, texts):
    place = folder("bert")
    words = {token: number for number, token in enumerate(SPECIAL.values())}
    empty = train_tokenizer(texts, 300)
    empty.model = models.WordPiece(words, unk_token="[UNK]")
    PreTrainedTokenizerFast(tokenizer_object=empty, **SPECIAL).save_pretrained(place)
    with pytest.raises(Fb3Error, match=r"knows no words: the files of its vocabulary are missing or of another class"):
        loaded(place)


def test_a_vocabulary_of_another_class_is_refused(folder, texts):
    """Version 5 makes a tokenizer of five tokens of it; version 4 fails."""
    place = folder("roberta")
    (place / "vocab.txt").write_text("\n".join(train_tokenizer(texts, 300).get_vocab()) + "\n")
    with pytest.raises((Fb3Error, TypeError)):
        loaded(place)


def test_a_character_that_is_unknown_gets_a_token_of_its_own(folder, texts):
    """Only one that occurs often enough: in three texts, however often in each."""
    data = DataSettings(text={"new_tokens": 3})
    written = ["语法 a", "语 b 好好好", "语好 🙂", "🙂 🙂", "🙂 c"]
    frequent = frequent_characters([*written, *texts], data)
    assert {"语", "🙂", "e"} <= {*frequent}
    assert not {"法", "好", " "} & {*frequent}
    several = [("", text, text) for text in [*written, *texts]]  # a tuple, as data.text.parts gives it
    assert frequent_characters(several, data) == frequent
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(texts, 300), **SPECIAL)
    size = len(tokenizer)
    tokenizer.add_tokens(unknown_characters(tokenizer, frequent, "here"))
    assert len(tokenizer) == size + 2
    assert tokenizer.tokenize("语法a语🙂") == ["语", "[UNK]", "a", "语", "🙂"]
    with pytest.raises(Fb3Error, match=r"the tokenizer of here knows all .* leave it out, or give a smaller number"):
        unknown_characters(tokenizer, frequent, "here")
    assert frequent_characters(written, DataSettings()) == []
    with pytest.raises(Fb3Error, match="new_tokens=6: no character is in so many texts"):
        frequent_characters(written, DataSettings(text={"new_tokens": 6}))
