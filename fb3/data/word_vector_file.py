"""Word vectors in word2vec's text format or GloVe's: a line a word, the word and then its numbers, by spaces.

word2vec's first line holds the count of words and their width, and GloVe has no such line. A file is read as a stream,
once for its words and once for the numbers of the words that are kept: one of two million words has several GB.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fb3.errors import Fb3Error
from fb3.system.compressed_files import COMPRESSED, unpacking
from fb3.system.file_contents import placeholder_problem
from fb3.system.progress import progress

_LARGEST = 64 * 2**30  # bytes; GloVe of 2.2 million words has 6 GB
_MEND = "give word2vec's text format or GloVe's, whole; gensim's save_word2vec_format writes it with binary=False"


class VectorWords(NamedTuple):
    """The words of a file. lines: each word's line, from 0, in the file's order; width: numbers of a word; left_out:
    lines that are no word of their own, by the reason."""

    lines: dict[str, int]
    width: int
    left_out: dict[str, int]


def read_vector_words(path: Path) -> VectorWords:
    """Reads the words of a file, not their numbers; of two lines of one word the first counts.

    Words with a space in them, and words that are not UTF-8, are left out and counted.

    Raises:
        Fb3Error: it cannot be read, holds no vectors, or is cut off.
    """
    words: dict[str, int] = {}
    left_out = {"stand there again": 0, "hold a space": 0, "are not UTF-8": 0}
    with _lines(path) as (count, width, lines):
        number = -1
        for number, line in enumerate(lines):
            spaces = line.count(b" ")
            if spaces != width:
                if spaces < width or b"\0" in line:
                    raise Fb3Error(
                        f"{path}: word {number + 1} has {spaces} numbers where the first has {width}: the file is cut "
                        f"off, or in another form; {_MEND}"
                    )
                left_out["hold a space"] += 1
                continue
            try:
                word = line[: line.index(b" ")].decode()
            except UnicodeDecodeError:
                left_out["are not UTF-8"] += 1
                continue
            left_out["stand there again"] += word in words
            words.setdefault(word, number)
    if count is not None and number + 1 != count:
        raise Fb3Error(f"{path}: holds {number + 1:,} words where its first line says {count:,}; download it again")
    if not words:
        raise Fb3Error(f"{path}: holds no words; {_MEND}")
    return VectorWords(words, width, {why: n for why, n in left_out.items() if n})


def read_vectors(path: Path, lines: Mapping[int, int], width: int) -> np.ndarray:
    """The vectors of some lines, (N, width) float32.

    Args:
        path: the file.
        lines: the row of each line that is wanted.
        width: numbers of a word.

    Raises:
        Fb3Error: a number is none, or not finite.
    """
    vectors, left = np.empty((len(lines), width), np.float32), len(lines)
    with _lines(path) as (_, _, stream), progress(f"reads {path.name}", len(lines)) as advance:
        for number, line in enumerate(stream):
            row = lines.get(number)
            if row is None:
                continue
            word, *numbers = line.split(b" ")
            try:
                vectors[row] = list(map(float, numbers))
            except ValueError as error:
                raise Fb3Error(f"{path}: word {number + 1}, {word.decode()!r}: {error}; {_MEND}") from None
            advance()
            left -= 1
            if not left:
                break
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(1))):
        raise Fb3Error(f"{path}: {len(bad)} words have a vector with a number that is not finite; take another file")
    return vectors


@contextmanager
def _lines(path: Path) -> Iterator[tuple[int | None, int, Iterator[bytes]]]:
    """The count of words that a first line names, if any, the vectors' width, and the lines of words."""
    try:
        if problem := placeholder_problem(path):
            raise Fb3Error(f"{path}: {problem}")
        packed = path.suffix.lower() in COMPRESSED
        with unpacking(path, _LARGEST) if packed else path.open("rb") as file:
            yield _begun(path, file)
    except OSError as error:
        raise Fb3Error(f"{path}: cannot be read ({error.strerror or error})") from None


def _begun(path: Path, file: BinaryIO) -> tuple[int | None, int, Iterator[bytes]]:
    first = file.readline(2**20).removeprefix(b"\xef\xbb\xbf").rstrip()
    fields = first.split(b" ")
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1]), map(bytes.rstrip, file)
    try:
        width = len(list(map(float, fields[1:])))
    except ValueError:
        width = 0
    if width < 2:
        raise Fb3Error(f"{path}: begins with {first[:40].decode(errors='replace')!r}, no word and its numbers; {_MEND}")
    return None, width, _and_then(first, file)


def _and_then(first: bytes, file: BinaryIO) -> Iterator[bytes]:
    yield first
    yield from map(bytes.rstrip, file)
