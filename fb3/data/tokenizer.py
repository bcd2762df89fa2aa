"""The tokenizer of an encoder folder, its special tokens, and the tokens that a recipe adds. Without transformers."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from fb3.data.texts import CAPITAL, NEWLINE, UPPER, Text
from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings
from fb3.system.file_contents import placeholder_problem
from fb3.system.file_names import CONFIG, PADDED, TOKENIZER
from fb3.system.files import read_json, read_utf8

_LARGEST = 256 * 2**20  # bytes of a tokenizer.json; one of 250,000 tokens has 30 MB


def load_tokenizer(folder: str | Path) -> tuple[Tokenizer, int]:
    """The fast tokenizer of an encoder folder, and the padding id; an Fb3Error where a file is missing or broken."""
    tokenizer = read_tokenizer(Path(folder) / TOKENIZER)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pad = read_json(Path(folder) / CONFIG).get("pad_token_id")  # `export_encoder` writes it
    if not isinstance(pad, int):
        raise Fb3Error(f"{Path(folder) / CONFIG}: pad_token_id is {pad!r}; want the padding token's number")
    return tokenizer, pad


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json; an Fb3Error where it is missing or broken."""
    text = read_utf8(path, _LARGEST)
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("a")  # some broken files fail here only
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic inside the library is no Exception
        if words := placeholder_problem(path):
            raise Fb3Error(f"{path}: cannot be read (it {words})") from None
        raise Fb3Error(
            f"{path}: cannot be read ({error}): it is broken, or was saved by a newer version of tokenizers than the "
            f"{tokenizers.__version__} that is here; pip install --upgrade tokenizers"
        ) from None
    return tokenizer


def padded_length(folder: str | Path) -> int:
    """Tokens to which an encoder needs every input padded; 0: padding changes nothing, so pad to the batch's longest.

    Raises:
        Fb3Error: config.json holds no such number.
    """
    tokens = read_json(Path(folder) / CONFIG).get(PADDED, 0)
    if type(tokens) is not int or not 0 <= tokens < 2**20:
        raise Fb3Error(f"{Path(folder) / CONFIG}: {PADDED} is {tokens!r}; want a number of tokens")
    return tokens


def added_tokens(data: DataSettings) -> list[str]:
    """The tokens that a recipe adds to the tokenizer, in their order."""
    text = data.text
    added = [NEWLINE] * text.newlines + [CAPITAL, UPPER] * text.capitals
    return added + (target_tokens(data) if text.prompt == "tokens" else [])


def frequent_characters(texts: Iterable[Text], data: DataSettings) -> list[str]:
    """The characters that data.text.new_tokens texts or more hold, in order; none where it is off.

    Raises:
        Fb3Error: no character is in so many texts.
    """
    least = data.text.new_tokens
    if least is None:
        return []
    counts = Counter(chain.from_iterable(set("".join(text)) for text in texts))
    frequent = sorted(each for each, count in counts.items() if count >= least and not each.isspace())
    if not frequent:
        raise Fb3Error(f"data.text.new_tokens={least}: no character is in so many texts; give a smaller number")
    return frequent


def target_tokens(data: DataSettings) -> list[str]:
    """One token a target, such as [COHESION]."""
    return [f"[{column.upper()}]" for column in data.target_columns]


def check_tokenizer(tokenizer: Tokenizer, data: DataSettings) -> None:
    """Refuses data.text.capitals where the tokenizer tells capitals apart by itself."""
    encoded = [tokenizer.encode(word, add_special_tokens=False).ids for word in ("Essay", "essay")]
    if data.text.capitals and encoded[0] != encoded[1]:
        raise Fb3Error("data.text.capitals: this tokenizer tells capitals apart by itself; leave it out")


def prompt_ids(tokenizer: Tokenizer, data: DataSettings) -> list[int]:
    """The prompt's tokens, which stand before each text and each of its windows."""
    if data.text.prompt == "tokens":
        return [tokenizer.token_to_id(token) for token in target_tokens(data)]
    if data.text.prompt == "names":
        names = ", ".join(column.replace("_", " ") for column in data.target_columns)
        return tokenizer.encode(f"{names}:", add_special_tokens=False).ids
    return []


def prefix_and_suffix(tokenizer: Tokenizer, data: DataSettings) -> tuple[list[int], list[int]]:
    """The tokens before each input, special ones and the prompt, and the special ones after it."""
    prefix, suffix = special_tokens(tokenizer)
    return [*prefix, *prompt_ids(tokenizer, data)], suffix


def separator(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts between two texts; an Fb3Error where it has none."""
    pair = tokenizer.encode("a", "a")
    texts = [[place for place, text in enumerate(pair.sequence_ids) if text == number] for number in (0, 1)]
    found = pair.ids[texts[0][-1] + 1 : texts[1][0]] if all(texts) else []
    if not found:
        raise Fb3Error(
            "data.text.parts: this tokenizer puts no separator between two texts; take data.text.template in its place"
        )
    return found


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    marked = tokenizer.encode("a")
    special = marked.special_tokens_mask
    inner = [position for position, flag in enumerate(special) if not flag]
    first, last = (inner[0], inner[-1] + 1) if inner else (len(special), len(special))
    return marked.ids[:first], marked.ids[last:]
