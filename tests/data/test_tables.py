import gzip
import json
import re
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fb3.data.tables
from fb3.data.tables import parse_numbers, read_table, write_table
from fb3.errors import Fb3Error
from fb3.system.files import write_csv


def written(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_text(content, "utf-8")
    return path


def test_a_large_table_is_read_within_its_own_size(tmp_path):
    path = tmp_path / "large.csv"
    path.write_text("id,text\n" + "".join(f"{n},{'word ' * 20_000}\n" for n in range(100)) + "last,😀\n", "utf-8")
    tracemalloc.start()
    table = read_table(path, ["id"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 101
    assert peak < 1.5 * path.stat().st_size  # the whole file as one text takes four bytes a letter


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
    table = read_table(written(tmp_path, "text_id,full_text,a,b,,\n" + rows), [])
    assert table.to_dict("list") == {"text_id": ["x", "w"], "full_text": ["y", "z"], "a": ["1", "3"], "b": ["2", "4"]}


IDS = ["NA", "1e5", "007", "=cmd|' /C calc'!A0", " a ", "a\x00b", "a\x00", "\ufeffa", "\x1b[0m", "a\rb", "'", "1.0"]

IDS += ["nan", "-0", "x" * 9_000, '"', ",", "\\", '\\"', "\ta", "a\u2028b", "é", "e\u0301", "#", "a\x85", "0x1F"]

STRANGE = st.sampled_from(IDS) | st.text('\r\n\0",\\ \t;a\ufeff\x1c\x85\u2028=') | st.text()


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


NUMBERS = {"1.5": 1.5, " -2\t": -2, "3.0000000000000004": 3.0000000000000004, "1e3": 1000, ".5": 0.5}


def test_numbers_are_read_exactly(tmp_path):
    table = read_table(written(tmp_path, "id,a,b\n" + "".join(f"x,{cell},0\n" for cell in NUMBERS)), [])
    assert parse_numbers(table, "id", ["b", "a"], "t.csv").tolist() == [[0, value] for value in NUMBERS.values()]


@pytest.mark.parametrize("cell", ["", "x", "nan", "inf", "1e999", "1_000", "٣", "1,5", "True", "0x1F", "1 0"])
def test_a_cell_that_is_no_number_is_named_by_row_and_column_also_in_a_part_of_the_table(tmp_path, cell):
    table = read_table(written(tmp_path, f'id,a,b\nx,1,2\ny,1,"{cell}"\nz,1,\n'), [])
    words = rf"t\.csv: {{}} cells hold no number, first '{re.escape(cell)}' in row 2 \(id y\), column b; mend it"
    with pytest.raises(Fb3Error, match=words.format(2)):
        parse_numbers(table, "id", ["a", "b"], "t.csv", "; mend it")
    with pytest.raises(Fb3Error, match=words.format(1)):
        parse_numbers(table.iloc[[1, 0]], "id", ["a", "b"], "t.csv", "; mend it")


ROWS = {"id": ["1", "NA", "007"], "text": ["a,b\tc", 'two\nlines, "quoted"', ""]}


def packed(path, content, members=None):
    """Writes bytes as they are, or in the compressed form that the suffix names."""
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix != ".zip":
        path.write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members or [path.stem, f"__MACOSX/._{path.stem}"]:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("form", ["t.csv", "t.csv.gz", "t.csv.zip", "t.tsv", "t.txt", "t.tsv.zip", "t.txt.gz"])
@pytest.mark.parametrize("asked", ["its own name", "without its compression"])
def test_a_table_of_any_form_is_read_exactly_under_its_own_name_or_without_its_compression(tmp_path, form, asked):
    table, separator = pd.DataFrame(ROWS), "," if ".csv" in form else "\t"
    path = packed(tmp_path / form, table.to_csv(index=False, sep=separator).encode("utf-8-sig"))
    plain = tmp_path / form.removesuffix(".gz").removesuffix(".zip")
    found = read_table(path if asked == "its own name" else plain, ["id"])
    assert found.to_dict("list") == ROWS


def test_a_plain_file_goes_before_its_compressed_form(tmp_path):
    packed(tmp_path / "t.csv.zip", b"id\n1\n")
    assert read_table(tmp_path / "t.csv", [])["id"].tolist() == ["1"]
    packed(tmp_path / "t.csv", b"id\n2\n")
    assert read_table(tmp_path / "t.csv", [])["id"].tolist() == ["2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv.zip", b"PK\x03\x04 no zip", "t.csv.zip: cannot be unpacked"),
        ("t.csv.gz", b"no gzip", "t.csv.gz: cannot be unpacked"),
        ("t.csv.gz", gzip.compress(b"id,text\n" + b"1,a\n" * 999, mtime=0)[:-12], "t.csv.gz: cannot be unpacked"),
        (
            "t.csv.gz",
            gzip.compress(b"id,text\n1,a,b\n", mtime=0),
            r"t.csv.gz: row 1 has 3 cells, the header 2 \(line 2\)",
        ),
        ("t.csv.gz", gzip.compress(b"id,text\n1,caf\xe9\n", mtime=0), "t.csv.gz: not UTF-8 at byte 13"),
        (
            "t.csv.gz",
            gzip.compress(b"id\n" + b"1\n" * 9999, mtime=0),
            "t.csv.gz: has more than the 0.0 MB that are read",
        ),
        ("t.tsv", b'id\ttext\n1\t"a\n', "t.tsv: row 1 makes it .*; a cell with a tab, a quote or"),
        ("t.tsv", b"id,text\n1,a\n", "t.tsv: its columns are separated by commas; save it with tabs"),
        (
            "t.parquet",
            b"no parquet",
            "t.parquet: (cannot be read as parquet|reading parquet wants pyarrow; pip install)",
        ),
    ],
)
def test_a_broken_table_of_another_form_is_told(tmp_path, monkeypatch, name, content, words):
    monkeypatch.setattr(fb3.data.tables, "LARGEST", 10_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Fb3Error, match=words):
        read_table(tmp_path / name, [])


def test_a_zip_holds_one_table_of_a_size_that_can_be_read(tmp_path, monkeypatch):
    for tables, members in ((0, ["read.me"]), (2, ["a.csv", "b.tsv", "c.png"])):
        packed(tmp_path / "t.csv.zip", b"id\n1\n", members)
        with pytest.raises(Fb3Error, match=f"holds {tables} tables, want one; unpack it") as error:
            read_table(tmp_path / "t.csv.zip", [])
        assert str(error.value).endswith(f": {members}")
    packed(tmp_path / "t.csv.zip", b"id\n" + b"1\n" * 9999)
    monkeypatch.setattr(fb3.data.tables, "LARGEST", 10_000)
    with pytest.raises(Fb3Error, match=r"more than the 0\.0 MB"):
        read_table(tmp_path / "t.csv.zip", [])


def test_parquet_comes_as_its_csv_would(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(
        {"id": ["NA", "007", "é"], "n": [1, 2, 10**17], "x": [0.1, np.nan, 1e-9], "b": [True, False, True]}
    )
    table["f"], table["c"] = np.array([0.1, 2, np.nan], np.float32), pd.Categorical(["u", None, "v"])
    table["whole"] = pd.array([1, None, 3], "Int64")
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet", ["id"]), read_table(tmp_path / "t.csv", ["id"]))


RECORDS = [
    {
        "id": "007",
        "title": 'a, "b"\nc',
        "n": 10**17,
        "x": 0.1,
        "ocr": [{"time": 1, "text": "字"}, {"time": 2, "text": "b"}],
    },
    {
        "id": "NA",
        "n": None,
        "x": float("nan"),
        "y": float("-inf"),
        "ocr": [],
        "tags": ["u", "v"],
        "box": {"w": 1},
        "ok": True,
    },
]
CELLS = {
    "id": ["007", "NA"],
    "title": ['a, "b"\nc', ""],
    "n": ["1" + "0" * 17, ""],
    "x": ["0.1", ""],
    "ocr": ["字\nb", ""],
    "y": ["", "-Infinity"],
    "tags": ["", "u\nv"],
    "box": ["", '{"w": 1}'],
    "ok": ["", "true"],
}


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.json.gz", "t.jsonl.zip"])
def test_records_of_json_become_rows_of_text(tmp_path, name):
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    text = "\n".join(lines) if "jsonl" in name else json.dumps(RECORDS)
    packed(tmp_path / name, text.encode())
    found = read_table(tmp_path / name.removesuffix(".gz").removesuffix(".zip"), ["id"])
    pd.testing.assert_frame_equal(found, pd.DataFrame(CELLS, dtype=object))
    again = tmp_path / f"again{Path(name.removesuffix('.gz').removesuffix('.zip')).suffix}"
    write_table(found, again)
    pd.testing.assert_frame_equal(read_table(again, []), found)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.json", '{"id": {"0": "a"}}', "want a list of records, .* got dict"),
        ("t.json", "[]", "want a list of records, .* got an empty list"),
        ("t.json", '[{"id": 1}, 2]', "record 2 is '2', want names and values"),
        ("t.json", '[{"id": 1}', r"t.json: not JSON \(Expecting ',' delimiter: line 1 .*; download it again"),
        ("t.json", '[{"id": 1, "id": 2}]', "not JSON .key 'id' stands twice in a record"),
        ("t.jsonl", '{"id": 1}\n\n{"id"', "t.jsonl: line 3: not JSON"),
        ("t.json", "[" * 99_999, "not JSON"),
    ],
)
def test_json_without_records_is_refused_in_words(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(Fb3Error, match=words):
        read_table(tmp_path / name, [])


def test_parquet_without_pyarrow_names_the_mend(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(Fb3Error, match="reading parquet wants pyarrow; pip install pyarrow, or save the file as CSV"):
        read_table(tmp_path / "t.parquet", [])


@pytest.mark.parametrize(
    ("there", "meant"), [("train_essays.csv", 1), ("train.parquet", 1), ("essays_train.csv.zip", 1), ("essays.csv", 0)]
)
def test_a_missing_file_is_told_with_the_name_that_would_fit(tmp_path, there, meant):
    packed(tmp_path / there, b"id\n1\n")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(Fb3Error) as error:
        read_table(tmp_path / "train.csv", [], key="data.files.train")
    end = f"; data.files.train={there} would fit" * meant
    assert str(error.value) == f"{tmp_path / 'train.csv'}: no such file; tables in {tmp_path}: ['{there}']{end}"
