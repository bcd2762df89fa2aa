"""`fb3 words`: a backbone folder of static word vectors, from a file of them or trained on the texts at hand."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from fb3.data.essays import read_essays
from fb3.data.texts import repaired
from fb3.data.word_cooccurrence import train_word_vectors
from fb3.data.word_splitting import PAD, UNKNOWN, WordSplitter, best_split, kept_words
from fb3.data.word_vector_file import read_vector_words, read_vectors
from fb3.errors import Fb3Error
from fb3.models.word_vectors import WordVectorsConfig, WordVectorsModel
from fb3.recipe import Recipe
from fb3.system.compressed_files import stored_file
from fb3.system.disk_space import disk_full_errors, format_bytes
from fb3.system.files import atomic_folder, read_json, sha256, write_json
from fb3.system.progress import say

PROVENANCE = "word_vectors.json"  # beside the encoder: where its vectors come from
_RAREST = 2  # times that a word must occur to be trained
_SHOWN = 12  # unknown words in the message


def build_word_encoder(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    vectors: Path | None = None,
    further: Sequence[Path] = (),
    keep: int = 100_000,
    size: int = 200,
    window: int = 5,
) -> dict[str, Any]:
    """Writes a backbone folder: config.json, a tokenizer of whole words, the table of vectors, and its provenance.

    Only texts are read, no scores, so that validation essays may be among them. A word that the table lacks is [UNK],
    the mean of the vectors.

    Args:
        recipe: its data group names files and columns.
        data: folder of the training file.
        out: the folder to write, which must not exist.
        vectors: a file in word2vec's text format or GloVe's; none: vectors are trained on the texts.
        further: more files of texts, such as essays without scores.
        keep: the words of the file to keep beside the texts' own, from its beginning; of the texts, if trained.
        size, window: numbers of a trained vector, and the words on each side that are its neighbours.

    Returns:
        The provenance.

    Raises:
        Fb3Error: a file is missing or broken, or `out` exists.
    """
    if out.exists():
        raise Fb3Error(f"{out}: exists; choose another --out")
    files = [stored_file(path) for path in (data / recipe.data.files.train, *further)]
    texts = [text for path in files for text in _texts(path, recipe, data)]
    read = {path.name: sha256(path) for path in files}
    if vectors:
        splitter, counts, words, table, source = _given(vectors, texts, keep)
    else:
        splitter, counts, words, table, source = _trained(texts, keep, size, window)
    known = set(words)
    unknown = Counter({word: n for word, n in counts.items() if word not in known})
    known_share = 1 - unknown.total() / max(1, counts.total())
    provenance = {
        **source,
        "split": splitter.split,
        "lower_case": splitter.lower,
        "words": len(words),
        "width": table.shape[1],
        "texts": read,
        "known_share": round(known_share, 5),
        "unknown_words": dict(unknown.most_common(100)),
    }
    _write(out, words, table, splitter, provenance)
    say(
        f"{out}: {len(words):,} words of {table.shape[1]} numbers ({format_bytes(table.nbytes)}, which each fold holds "
        f"too); split: {splitter.split}, {'small letters' if splitter.lower else 'capitals kept'}; "
        f"{known_share:.1%} of the words in {len(texts):,} texts are known"
        + (f", most frequent unknown: {' '.join(w for w, _ in unknown.most_common(_SHOWN))}" if unknown else "")
    )
    return provenance


def _texts(path: Path, recipe: Recipe, folder: Path) -> list[str]:
    """A file's texts, each column by itself, without the tokens that data.text adds when a run reads them."""
    essays, data = read_essays(path, recipe.data, folder=folder), recipe.data
    texts = [text for column in data.text_columns() for text in essays[column]]
    return [repaired(text) for text in texts] if data.text.repair else texts


_Words = tuple[WordSplitter, Counter[str], list[str], np.ndarray, dict[str, Any]]


def _given(path: Path, texts: Sequence[str], keep: int) -> _Words:
    """The words of a file that are kept, and their vectors."""
    found = read_vector_words(path)
    splitter, counts = best_split(found.lines, texts)
    if not any(word in found.lines for word in counts):
        raise Fb3Error(f"{path}: none of its {len(found.lines):,} words is in the texts; is it of their language?")
    kept = kept_words(found.lines, splitter, counts, keep)
    rows = {line: row for row, line in enumerate(dict.fromkeys(kept.values()))}
    table = read_vectors(path, rows, found.width)[[rows[line] for line in kept.values()]]
    reasons = "".join(f"; {count:,} lines {why}" for why, count in found.left_out.items())
    say(f"{path}: {len(found.lines):,} words{reasons}; {len(rows):,} are kept")
    source = {"source": path.name, "sha256": sha256(path), "left_out": found.left_out, "keep": keep}
    return splitter, counts, list(kept), table, source


def _trained(texts: Sequence[str], keep: int, size: int, window: int) -> _Words:
    """The texts' own words that occur twice, and vectors of them."""
    say(f"vectors are trained on {len(texts):,} texts, among them those of validation essays; no score is read")
    splitter = WordSplitter("apostrophes", lower=False)
    split = [splitter(text) for text in texts]
    counts = Counter(word for words in split for word in words)
    frequent = sorted((w for w, n in counts.items() if n >= _RAREST), key=lambda word: (-counts[word], word))[:keep]
    places = {word: place for place, word in enumerate(frequent)}
    rows = [[places.get(word, -1) for word in words] for words in split]
    kept = kept_words(places, splitter, counts, keep)
    table = train_word_vectors(rows, len(frequent), size, window)[list(kept.values())]
    source = {"source": "trained", "method": "ppmi-svd", "keep": keep, "size": size, "window": window}
    return splitter, counts, list(kept), table, source


def _write(
    out: Path, words: Sequence[str], table: np.ndarray, splitter: WordSplitter, provenance: dict[str, Any]
) -> None:
    """Writes the folder: [PAD] is a row of zeros, [UNK] the mean of the table."""
    weights = np.concatenate([np.zeros_like(table[:1]), table.mean(0, keepdims=True), table])
    model = WordVectorsModel(WordVectorsConfig(len(weights), weights.shape[1]))
    with torch.no_grad():
        model.embeddings.weight.copy_(torch.from_numpy(weights))
    logging.disable_progress_bar()  # fb3 shows its own
    tokenizer = splitter.tokenizer([PAD, UNKNOWN, *words])
    with disk_full_errors(out, weights.nbytes), atomic_folder(out) as aside:
        model.save_pretrained(aside)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN).save_pretrained(aside)
        # transformers 5 names its own class, which transformers 4 lacks; both know this one.
        settings = aside / "tokenizer_config.json"
        write_json({**read_json(settings), "tokenizer_class": "PreTrainedTokenizerFast"}, settings)
        write_json(provenance, aside / PROVENANCE)
