"""Word vectors in the forms that word2vec, GloVe and fastText write."""

import gzip
import zipfile

import numpy as np
import pytest

from fb3.data.word_vector_file import read_vector_words, read_vectors
from fb3.errors import Fb3Error

WORDS = {"the": (0.25, -1.5), "of": (1e-3, 2.0), ",": (0.0, 0.5)}
GLOVE = "".join(f"{word} {one} {two}\n" for word, (one, two) in WORDS.items())
WORD2VEC = "3 2\n" + "".join(
    f"{word} {one:.6f} {two:.6f} \n" for word, (one, two) in WORDS.items()
)  # a space at its end


def write(path, text):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("crawl.vec", text)
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("text", [GLOVE, WORD2VEC, WORD2VEC.replace("\n", "\r\n"), "\ufeff" + WORD2VEC, GLOVE[:-1]])
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz", "v.vec.zip"])
def test_both_forms_are_read_plain_and_packed(text, name, tmp_path):
    path = write(tmp_path / name, text)
    found = read_vector_words(path)
    assert (list(found.lines), found.width, found.left_out) == (list(WORDS), 2, {})
    rows = {found.lines[","]: 0, found.lines["the"]: 1}
    np.testing.assert_array_equal(read_vectors(path, rows, 2), np.array([WORDS[","], WORDS["the"]], np.float32))


def test_odd_words_are_left_out_and_counted(tmp_path):
    """GloVe of 840 billion words has words with spaces in them, and other files have a word twice, or Latin-1."""
    path = tmp_path / "v.txt"
    path.write_bytes(GLOVE.encode() + b". . 1 2\nthe 9 9\ncaf\xe9 1 2\nna\xc3\xafve\xc2\xa0x 3 4\n")
    found = read_vector_words(path)
    assert [*found.lines] == [*WORDS, "naïve\xa0x"]
    assert found.left_out == {"hold a space": 1, "stand there again": 1, "are not UTF-8": 1}
    np.testing.assert_array_equal(read_vectors(path, {0: 0, 6: 1}, 2), [[0.25, -1.5], [3, 4]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("9 2\n" + GLOVE, "holds 3 words where its first line says 9; download it again"),
        (GLOVE + "and 0.1", "word 4 has 1 numbers where the first has 2: the file is cut off"),
        ("3 2\n\0\1\2\n\3 a", "the file is cut off, or in another form; give word2vec's text format or GloVe's"),
        ("<!doctype html>", "is a web page"),
        ("", "is empty"),
        ("a,b\n1,2\n", "begins with 'a,b', no word and its numbers"),
        ("0 2\n", "holds no words"),
    ],
)
def test_another_file_is_refused_with_its_mend(text, words, tmp_path):
    with pytest.raises(Fb3Error, match=r"v\.txt: ") as error:
        read_vector_words(write(tmp_path / "v.txt", text))
    assert words in str(error.value)


@pytest.mark.parametrize(("number", "words"), [("x1", "word 2, 'b': could not convert"), ("nan", "1 words have a vec")])
def test_a_number_that_is_none_is_refused(number, words, tmp_path):
    path = write(tmp_path / "v.txt", f"a 1 2\nb 1 {number}\n")
    with pytest.raises(Fb3Error) as error:
        read_vectors(path, {0: 0, 1: 1}, 2)
    assert words in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Fb3Error, match=r"v\.txt: cannot be read"):
        read_vector_words(tmp_path / "v.txt")
