"""The warning about tokens that a tokenizer does not know."""

import pytest

from fb3.data.tokens import encode_texts
from fb3.data.unknown_tokens import tell_unknown
from fb3.data.word_splitting import PAD, UNKNOWN, WordSplitter
from fb3.recipe.data import DataSettings
from fb3.system.files import write_json


@pytest.mark.parametrize("pair", [False, True])
def test_many_unknown_tokens_are_told_once_with_the_characters_that_are_most_of_them(run, texts, capsys, pair):
    strange = ["时间 时 计", texts[0][:60]]
    settings = DataSettings(text={"parts": [{"column": "full_text"}, {"column": "b"}]} if pair else {})
    given = [(text, "计 时") for text in strange] if pair else strange
    tell_unknown(given, encode_texts(given, run / "encoder", settings), run / "encoder", "model.backbone=x")
    told = capsys.readouterr().err
    assert "WARNING: model.backbone=x: its tokenizer does not know " in told
    assert f"cannot read: {'时 计 间' if pair else '时 间 计'}; take a backbone of the texts' language" in told


def test_few_unknown_tokens_are_not_told(run, texts, capsys):
    given = ["时", *texts]
    tell_unknown(given, encode_texts(given, run / "encoder", DataSettings()), run / "encoder", "model.backbone=x")
    assert not capsys.readouterr().err


def test_word_vectors_tell_the_words_that_they_lack(tmp_path, capsys):
    splitter = WordSplitter("apostrophes", lower=True)
    splitter.tokenizer([PAD, UNKNOWN, "a", "good", "essay"]).save(str(tmp_path / "tokenizer.json"))
    write_json({"pad_token_id": 0}, tmp_path / "config.json")
    given = ["A good esay", "a GOOD esay, Ann"]
    tell_unknown(given, encode_texts(given, tmp_path, DataSettings()), tmp_path, "model.backbone=x")
    told = capsys.readouterr().err
    assert told == "WARNING: model.backbone=x: 50.0% of the texts' words are unknown to it, most often esay , Ann\n"
