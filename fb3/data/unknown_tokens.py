"""Unknown tokens: a warning where a tokenizer cannot read a good part of the texts, such as another language."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from fb3.data.texts import Text
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import Encoded
from fb3.system.progress import say

_UNKNOWN = ("[UNK]", "<unk>")
_FEW = 0.02  # share of the tokens below which nothing is said
_SHOWN = 12  # characters or words in the message


def tell_unknown(texts: Sequence[Text], encoded: Encoded, folder: str | Path, backbone: str) -> None:
    """Says where a tokenizer does not know many of the texts' tokens, and which characters most of them are.

    Args:
        texts: the texts that became the tokens.
        encoded: the tokens.
        folder: the encoder folder; word vectors know words alone, and the words that they lack are said.
        backbone: the key and name of the backbone, for the message.
    """
    tokenizer, _ = load_tokenizer(folder)
    unknown = [i for word in _UNKNOWN if (i := tokenizer.token_to_id(word)) is not None]
    share = np.isin(np.concatenate(encoded.rows), unknown).mean()
    if share < _FEW:
        return
    if isinstance(tokenizer.model, models.WordLevel):
        words = " ".join(_unknown_words(texts, tokenizer, unknown))
        say(f"WARNING: {backbone}: {share:.1%} of the texts' words are unknown to it, most often {words}")
        return
    found = Counter("".join("".join(text) for text in texts))
    encodings = tokenizer.encode_batch_fast(list(found), add_special_tokens=False)
    unread = {sign for sign, encoding in zip(found, encodings, strict=True) if {*unknown} & {*encoding.ids}}
    signs = " ".join([sign for sign, _ in found.most_common() if sign in unread][:_SHOWN])
    most = f"; the most frequent characters that it cannot read: {signs}" if signs else ""
    say(
        f"WARNING: {backbone}: its tokenizer does not know {share:.1%} of the texts' tokens, so the encoder sees"
        f" nothing there{most}; take a backbone of the texts' language, or a multilingual one"
        f"{', or data.text.new_tokens=2' if signs else ''}"
    )


def _unknown_words(texts: Sequence[Text], tokenizer: Tokenizer, unknown: Sequence[int]) -> list[str]:
    """The most frequent words that become unknown tokens."""
    found: Counter[str] = Counter()
    for text in texts:
        for part in (text,) if isinstance(text, str) else text:
            encoding = tokenizer.encode(part, add_special_tokens=False)
            found.update(
                part[slice(*span)] for i, span in zip(encoding.ids, encoding.offsets, strict=True) if i in unknown
            )
    return [word for word, _ in found.most_common(_SHOWN)]
