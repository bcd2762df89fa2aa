"""Texts before they become tokens: several columns joined, encodings repaired, newlines and capitals made visible."""

import re

import pandas as pd

from fb3.recipe.data import DataSettings, TextSettings

NEWLINE, CAPITAL, UPPER = "[BR]", "[CAP]", "[UP]"
# Simple patterns, whose matches a function then tests: one pattern for all would be tried anew at every letter.
_SPACES = re.compile(r"\s\s+|\n")
_RUN = re.compile(r"\S*+[^\S\x00-\x7f]\S*|\S+")  # a word, or two with a space between them that is not ASCII
_WORD = re.compile(r"[^\W\d_]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


Text = str | tuple[str, ...]  # one text of an essay, or several where data.text.parts names several columns


def input_texts(essays: pd.DataFrame, data: DataSettings) -> list[Text]:
    """The text that the tokenizer gets for each essay of `read_essays`, changed as `data.text` says."""
    if data.text.parts:
        columns = (_changed(essays[part.column].tolist(), data.text) for part in data.text.parts)
        return list(zip(*columns, strict=True))
    texts = essays[data.text_column].tolist()
    if data.text.template:
        rows = essays[list(data.text.columns())].to_dict("records")
        texts = [data.text.template.format_map(row) for row in rows]
    return _changed(texts, data.text)


def _changed(texts: list[str], settings: TextSettings) -> list[str]:
    if settings.repair:
        texts = [repaired(text) for text in texts]
    if settings.capitals:
        texts = [_WORD.sub(_marked, text) for text in texts]
    if settings.newlines:
        texts = [_SPACES.sub(_broken, text.strip()) for text in texts]
    return texts


def repaired(text: str) -> str:
    """Undoes UTF-8 that was read as Windows-1252 ("donâ€™t"), word by word, and drops control characters.

    A word that does not decode, and a text without such words, stay as they are.
    """
    return _CONTROL.sub("", text if text.isascii() else _RUN.sub(_decoded, text))


def _broken(match: re.Match) -> str:
    return f" {NEWLINE} " if "\n" in match.group() else match.group()


def _decoded(match: re.Match) -> str:
    if match.group().isascii():
        return match.group()
    try:
        return b"".join(map(_byte, match.group())).decode("utf-8")
    except UnicodeError:
        return match.group()


def _byte(character: str) -> bytes:
    """The byte that Windows-1252 shows as this character; the five that it does not define stand for themselves."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")


def _marked(match: re.Match) -> str:
    word = match.group()
    if not word[0].isupper():
        return word
    return f" {UPPER if len(word) > 1 and word.isupper() else CAPITAL} {word}"
