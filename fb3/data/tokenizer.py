"""Essays to what a scorer reads of them: tokens and statistics. Without torch: it goes on beside its import."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import tokenizers
from tokenizers import Tokenizer

from fb3.data.text_statistics import text_statistics
from fb3.data.texts import check_tokenizer, input_texts
from fb3.data.tokens import Encoded, tokenise
from fb3.errors import Fb3Error
from fb3.recipe.data import DataGroup
from fb3.system.file_contents import stand_in
from fb3.system.file_names import CONFIG, PADDED, SECOND, TOKENIZER
from fb3.system.files import read_json, read_utf8

_LARGEST = 256 * 2**20  # bytes of a tokenizer.json; those of 250,000 tokens have 30 MB


def load_tokenizer(folder: str | Path) -> tuple[Tokenizer, int]:
    """The fast tokenizer of an encoder folder, read without transformers, and the padding id.

    Raises:
        Fb3Error: a file is missing or broken.
    """
    tokenizer = read_tokenizer(Path(folder) / TOKENIZER)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pad = read_json(Path(folder) / CONFIG).get("pad_token_id")  # `export_encoder` makes sure that it is there
    if not isinstance(pad, int):
        raise Fb3Error(f"{Path(folder) / CONFIG}: pad_token_id is {pad!r}; want the padding token's number")
    return tokenizer, pad


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json.

    Raises:
        Fb3Error: it is missing or broken.
    """
    text = read_utf8(path, _LARGEST)
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("a")  # some broken files fail here only
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception for a broken file; a panic of the library's is no Exception
        words = stand_in(path)
        if words:
            raise Fb3Error(f"{path}: cannot be read (it {words})") from None
        raise Fb3Error(
            f"{path}: cannot be read ({error}): it is broken, or was saved by a newer version of tokenizers than the "
            f"{tokenizers.__version__} that is here; pip install --upgrade tokenizers"
        ) from None
    return tokenizer


def padded_to(folder: str | Path) -> int:
    """The tokens to which every input of an encoder folder is padded; 0: to the longest of its batch.

    Raises:
        Fb3Error: config.json says something else.
    """
    tokens = read_json(Path(folder) / CONFIG).get(PADDED, 0)
    if type(tokens) is not int or not 0 <= tokens < 2**20:
        raise Fb3Error(f"{Path(folder) / CONFIG}: {PADDED} is {tokens!r}; want a number of tokens")
    return tokens


def encode_essays(essays: pd.DataFrame, folder: str | Path, data: DataGroup) -> Encoded:
    """What a scorer reads of N essays: tokens, and the texts' statistics where the recipe wants them.

    Args:
        essays: as `read_essays` returns them.
        folder: the encoder folder.
        data: what happens to a text.

    Raises:
        Fb3Error: as in `encode_texts`.
    """
    encoded = encode_texts(input_texts(essays, data), folder, data)
    if not data.text.statistics:
        return encoded
    return replace(encoded, statistics=text_statistics(essays[data.text_column].tolist()))


def encode_texts(texts: Sequence[str], folder: str | Path, data: DataGroup) -> Encoded:
    """N texts as tokens of an encoder folder, and as those of its second encoder where it has one.

    Raises:
        Fb3Error: a file is missing or broken; the recipe asks of a tokenizer what it cannot do.
    """
    tokenizer, pad = load_tokenizer(folder)
    check_tokenizer(tokenizer, data)
    encoded = tokenise(texts, tokenizer, pad, data, padded_to(folder))
    if not (Path(folder) / SECOND).is_dir():
        return encoded
    return replace(encoded, second=encode_texts(texts, Path(folder) / SECOND, data))
