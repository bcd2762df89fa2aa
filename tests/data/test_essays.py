import bz2
import gzip
import lzma
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fb3.data.batches import BUCKET_BATCHES, collate, inference_batches, steps_per_epoch, training_batches
from fb3.data.essays import read_essays
from fb3.data.tables import read_table
from fb3.data.tokenizer import special_tokens
from fb3.data.tokens import Encoded, tokenise, truncate
from fb3.errors import Fb3Error
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.recipe.data import DataSettings
from fb3.recipe.task import RegressionSettings
from fb3.submission.inference import infer
from fb3.system.files import write_csv

DATA = DataSettings(target_columns=("a", "b"))
HEAD = "text_id,full_text,a,b\n"


def write(tmp_path, content):
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_texts_come_as_they_stand(tmp_path):
    path = write(tmp_path, HEAD + '007,NA,1,2\n1e5,"line\n\nline, ""quoted""",3.5,5\nnull,,1,1\n')
    essays = read_essays(path, DATA, RegressionSettings())
    assert essays["text_id"].tolist() == ["007", "1e5", "null"]
    assert essays["full_text"].tolist() == ["NA", 'line\n\nline, "quoted"', ""]
    assert essays[["a", "b"]].to_numpy().dtype == np.float32


def test_a_file_for_its_folder_is_told(tmp_path):
    file = write(tmp_path, HEAD)
    with pytest.raises(Fb3Error, match=f"^{file}: is a file; give the folder that it is in$"):
        read_essays(file / "train.csv", DATA)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    essays = read_essays(
        write(tmp_path, "\ufeff" + HEAD.replace("\n", "\r\n") + "x,y,1,2\r\n"), DATA, RegressionSettings()
    )
    assert essays["text_id"].tolist() == ["x"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text_id,full_txt,a,b\nx,y,1,2\n", ["no column ['full_text']", "'full_txt'", "data.text_column and"]),
        (HEAD, ["no row"]),
        ("", ["not a CSV"]),
        (HEAD + "x,y,1,2\nx,z,1,2\nw,z,1,2\n", ["1 duplicate ids", "['x']"]),
        (HEAD + "x,y,1,2\n ,z,1,2\n,z,1,2\n", ["2 empty ids", "[2, 3]"]),
        (HEAD + "x,y,1,2\nw,z,,2\n", ["column a", "row 2", "text_id w", "''"]),
        (HEAD + "x,y,1,2\nw,z,nan,2\n", ["column a", "row 2"]),
        (HEAD + "x,y,1,2\nw,z,high,2\n", ["'high'"]),
        (HEAD + "x,y,1,2\nw,z,1,5.5\n", ["outside 1.0-5.0", "5.5", "row 2", "column b", "from 1.0 to 5.5"]),
        (HEAD + "x,y,1,2\nw,z,1,2,3\n", ["row 2 has 5 cells, the header 4"]),
        (HEAD + "x,y,1\n", ["row 1 has 3 cells"]),
        (HEAD + 'x,"y,1,2\n', ["row 1", "not a CSV table: unexpected end of data", "(line 2)", "quotes doubled"]),
        (
            HEAD + 'x,y,1,2\n\nw,"a\nb \\"c\\" d",1,2\n',
            ["row 2", "not a CSV", "(lines 4-5)", 'written ""'],
        ),
        (HEAD + 'x,"a \\", b",1,2\n', ["row 1 has 5 cells, the header 4 (line 2)", 'written "", not \\"']),
        ('text_id,"full\ntext\n', ["the header", "(lines 1-2)"]),
        ("text_id,full_text,a,b,,\nx,y,1,2,,\nw,y,1,2,,7\n", ["row 2", "column 5 or later", "no name", "(line 3)"]),
        ("text_id,full_text,a,b,,\nx,y,1,2,,,\n", ["row 1 has 7 cells, the header 6"]),
        ("text_id,,full_text,a,,b\nx,,y,1,,2\n", ["column [''] stands there more than once"]),
        ("text_id;full_text;a;b\nx;y, z;1;2\n", ["separated by semicolons; save it with commas"]),
        ("text_id\tfull_text\ta\tb\nx\ty, z\t1\t2\n", ["separated by tabs; save it with commas"]),
        ((HEAD + "x,y,1,2\n").encode("utf-16"), ["is UTF-16; save it as UTF-8"]),
        (b"\xfe\xff" + HEAD.encode("utf-16-be"), ["is UTF-16; save it as UTF-8"]),
        ((HEAD + "x,y,1,2\n").encode("utf-16-le"), ["NULs in its header; is it UTF-16? Save it as UTF-8"]),
        (gzip.compress(HEAD.encode(), mtime=0), ["is compressed (gzip); unpack it"]),
        (bz2.compress(HEAD.encode()), ["is compressed (bzip2); unpack it"]),
        (lzma.compress(HEAD.encode()), ["is compressed (xz); unpack it"]),
        (b"PK\x03\x04\x14\x00\xff\xff", ["is a zip archive or a workbook; unpack it"]),
        (HEAD + "x,y,1,2\n\ufefftext_id,full_text,a,b\n", ["column a", "'a'", "row 2"]),
        ("text_id,full_text,a,b,a\nx,y,1,2,1\n", ["column ['a'] stands there more than once"]),
        (b"text_id,full_text,a,b\nx,caf\xe9,1,2\n", ["not UTF-8 at byte 27"]),
        ("text_id,full_text,a,b,fold\nx,y,1,2,0\nw,y,1,2,2\n", ["column fold", "without gaps"]),
    ],
)
def test_bad_files_are_named_with_row_and_column(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(Fb3Error) as error:
        read_essays(path, DATA, RegressionSettings())
    for word in [*words, "train.csv"]:
        assert word in str(error.value)


def test_a_missing_file_names_what_is_there(tmp_path):
    (tmp_path / "trian.csv").write_text("")
    with pytest.raises(Fb3Error, match=r"train\.csv: no such file.*trian\.csv"):
        read_essays(tmp_path / "train.csv", DATA, RegressionSettings())


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 300)


def test_tokens_are_those_of_transformers(tokenizer, texts):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **SPECIAL)
    for limit in (16, 64, 4096):
        ours = tokenise([*texts, ""], tokenizer, 0, DataSettings(max_length=limit))
        expected = theirs([*texts, ""], truncation=True, max_length=limit)["input_ids"]
        assert [row.tolist() for row in ours.rows] == expected


@pytest.mark.parametrize("how", ["head", "tail", "head_tail"])
def test_truncation_keeps_special_tokens_and_the_named_end(tokenizer, texts, how):
    whole = tokenise(texts[:1], tokenizer, 0, DataSettings(max_length=4096)).rows[0]
    cut = tokenise(texts[:1], tokenizer, 0, DataSettings(max_length=21, truncation=how)).rows[0]
    assert len(cut) == 21
    assert (cut[0], cut[-1]) == (whole[0], whole[-1])
    inner = whole[1:-1]
    expected = {"head": inner[:19], "tail": inner[-19:], "head_tail": np.concatenate([inner[:10], inner[-9:]])}
    assert cut[1:-1].tolist() == expected[how].tolist()


@given(st.lists(st.integers(), max_size=30), st.integers(1, 30), st.sampled_from(["head", "tail", "head_tail"]))
def test_truncate_never_exceeds_the_room_and_leaves_short_texts(ids, room, how):
    cut = truncate(ids, room, how)
    assert len(cut) == min(len(ids), room)
    if len(ids) <= room:
        assert cut == ids


def test_no_room_beside_special_tokens(tokenizer):
    assert tuple(map(len, special_tokens(tokenizer))) == (1, 1)
    assert all(len(row) == 8 for row in tokenise(["word " * 50], tokenizer, 0, DataSettings(max_length=8)).rows)


LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=200).map(np.array)


@given(LENGTHS, st.integers(1, 16), st.integers(0, 99))
def test_training_batches_hold_every_row_once(lengths, size, seed):
    rows = np.arange(len(lengths))
    batches = training_batches(lengths, rows, size, seed, epoch=0)
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert max(map(len, batches)) <= size
    assert sum(len(b) < size for b in batches) <= 1
    assert len(batches) == steps_per_epoch(len(rows), size, 1)
    again = training_batches(lengths, rows, size, seed, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_training_batches_are_new_each_epoch_and_of_similar_length():
    lengths = np.random.default_rng(0).integers(10, 500, 1024)
    first, second = (training_batches(lengths, np.arange(1024), 8, 42, epoch) for epoch in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    padded = sum(lengths[b].max() * len(b) for b in first)
    assert padded / lengths.sum() < 1.12
    assert BUCKET_BATCHES == 16


@given(LENGTHS, st.integers(1, 4096))
def test_inference_batches_keep_to_the_budget_longest_first(lengths, budget):
    batches = inference_batches(lengths, np.arange(len(lengths)), budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_collate_pads_to_the_longest_of_the_batch():
    encoded = Encoded(
        [np.array([5, 6, 7], np.int32), np.array([8], np.int32), np.arange(9, dtype=np.int32)],
        pad_id=3,
        lengths=np.array([3, 1, 9]),
    )
    batch = collate(encoded, np.array([1, 0]), np.array([[1.0], [2.0], [3.0]], np.float32))
    assert batch["input_ids"].tolist() == [[8, 3, 3], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["row"].tolist() == [1, 0]
    assert batch["targets"].tolist() == [[2.0], [1.0]]


def test_a_large_table_is_read_within_its_own_size(tmp_path):
    path = tmp_path / "large.csv"
    path.write_text("id,text\n" + "".join(f"{n},{'word ' * 20_000}\n" for n in range(100)) + "last,😀\n", "utf-8")
    tracemalloc.start()
    table = read_table(path, ["id"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 101
    assert peak < 1.5 * path.stat().st_size  # as one text it is four bytes a letter


def test_a_byte_that_is_no_utf8_is_counted_from_the_start_of_the_file(tmp_path):
    path = tmp_path / "latin.csv"
    content = b"id,text\n" + b"".join(b"%d,plain words\n" % n for n in range(5000))
    path.write_bytes(content + b"5000,caf\xe9\n")
    with pytest.raises(Fb3Error, match=f"not UTF-8 at byte {len(content) + 8} "):
        read_table(path, ["id"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_any_system_between_rows_and_as_they_stand_within(tmp_path, end):
    path = tmp_path / "ends.csv"
    path.write_bytes(("\ufeff" + end.join(["id,text", f'1,"two{end}lines"', "2,one"]) + end).encode())
    assert read_table(path, ["id"]).to_dict("list") == {"id": ["1", "2"], "text": [f"two{end}lines", "one"]}


@pytest.mark.parametrize("rows", ["x,y,1,2,,\nw,z,3,4,,\n", "x,y,1,2\nw,z,3,4,\n"])  # spreadsheets do both
def test_columns_without_name_and_content_at_the_end_are_left_out(tmp_path, rows):
    table = read_table(write(tmp_path, "text_id,full_text,a,b,,\n" + rows), [])
    assert table.to_dict("list") == {"text_id": ["x", "w"], "full_text": ["y", "z"], "a": ["1", "3"], "b": ["2", "4"]}


IDS = ["NA", "1e5", "007", "=cmd|' /C calc'!A0", " a ", "a\x00b", "a\x00", "\ufeffa", "\x1b[0m", "a\rb", "'", "1.0"]
IDS += ["nan", "-0", "x" * 9_000, '"', ",", "\\", '\\"', "\ta", "a\u2028b", "é", "e\u0301", "#", "a\x85", "0x1F"]
STRANGE = st.sampled_from(IDS) | st.text('\r\n\0",\\ \t;a\ufeff\x1c\x85\u2028=') | st.text()


def test_ids_of_every_form_are_never_changed(tmp_path):
    essays = pd.DataFrame({"text_id": IDS, "full_text": IDS[::-1], "a": 1.5, "b": 2})
    write_csv(essays, tmp_path / "train.csv")
    found = read_essays(tmp_path / "train.csv", DATA, RegressionSettings())
    assert found["text_id"].tolist() == IDS
    assert found["full_text"].tolist() == IDS[::-1]


@settings(deadline=None, max_examples=120)
@given(st.lists(st.tuples(STRANGE, STRANGE), max_size=6), STRANGE.filter(lambda name: name != "text"))
def test_what_is_written_is_read_again(tmp_path_factory, rows, name):
    path = tmp_path_factory.getbasetemp() / "again.csv"
    table = pd.DataFrame(rows, columns=[name or "id", "text"], dtype=object)
    for part in (table, table[["text"]], table.assign(score=1.1, count=3)):
        write_csv(part, path)
        content = {column: [str(cell) for cell in part[column]] for column in part.columns}
        assert "\0" in name or read_table(path, list(part.columns)).to_dict("list") == content
        if not any("\0" in cell for cell in [name, *sum(rows, ())]):  # at which pandas ends a cell
            found = pd.read_csv(path, dtype=str, keep_default_na=False)
            assert found.to_dict("list") == content


def test_numbers_are_written_as_pandas_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.normal(0, 1, 500) * 10.0 ** rng.integers(-30, 30, 500)
    table = pd.DataFrame({"a": numbers, "b": numbers.astype(np.float32), "c": np.arange(500), "d": numbers > 0})
    table["e"], table["f"] = [1.5, None] * 250, [None, 2, "x", 0.1, True] * 100
    write_csv(table, tmp_path / "ours.csv")
    table.to_csv(tmp_path / "theirs.csv", index=False, lineterminator="\n")
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()


def test_ids_of_every_form_come_out_of_inference_as_they_went_in(bundle, tmp_path):
    essays = pd.DataFrame({"text_id": IDS, "full_text": [f"Essay {n}." for n in range(len(IDS))]})
    write_csv(essays, tmp_path / "test.csv")
    infer(bundle, out=tmp_path / "submission.csv", test=tmp_path / "test.csv", strict=True)
    assert read_table(tmp_path / "submission.csv", [])["text_id"].tolist() == IDS
