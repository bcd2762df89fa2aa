import bz2
import gzip
import lzma

import numpy as np
import pandas as pd
import pytest

from fb3.data.essays import read_essays
from fb3.data.tables import read_table
from fb3.errors import Fb3Error
from fb3.recipe.data import DataSettings, FoldsSettings
from fb3.recipe.task import RegressionSettings
from fb3.submission.inference import infer
from fb3.system.files import write_csv
from fb3.targets.target import Scores
from tests.data.test_tables import IDS

DATA = DataSettings(target_columns=("a", "b"))

HEAD = "text_id,full_text,a,b\n"


def write(tmp_path, content):
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_texts_come_as_they_stand(tmp_path):
    path = write(tmp_path, HEAD + '007,NA,1,2\n1e5,"line\n\nline, ""quoted""",3.5,5\nnull,,1,1\n')
    essays = read_essays(path, DATA, Scores(DATA, RegressionSettings()))
    assert essays["text_id"].tolist() == ["007", "1e5", "null"]
    assert essays["full_text"].tolist() == ["NA", 'line\n\nline, "quoted"', ""]
    assert essays[["a", "b"]].to_numpy().dtype == np.float32


def test_a_file_for_its_folder_is_told(tmp_path):
    file = write(tmp_path, HEAD)
    with pytest.raises(Fb3Error, match=f"^{file}: is a file; give the folder that it is in$"):
        read_essays(file / "train.csv", DATA)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    essays = read_essays(
        write(tmp_path, "\ufeff" + HEAD.replace("\n", "\r\n") + "x,y,1,2\r\n"), DATA, Scores(DATA, RegressionSettings())
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
        read_essays(path, DATA, Scores(DATA, RegressionSettings()))
    for word in [*words, "train.csv"]:
        assert word in str(error.value)


FOLDS = FoldsSettings(group_column="prompt", stratify_columns=("length", "source"))
SPLIT_HEAD = HEAD.replace("\n", ",prompt,length,source\n")


def test_the_columns_of_the_split_are_read_and_only_where_they_are_wanted(tmp_path):
    path = write(tmp_path, SPLIT_HEAD + "x,y,1,2,07,1e2,3\nw,z,1,2,7,5,web\n")
    essays = read_essays(path, DATA, Scores(DATA, RegressionSettings()), FOLDS)
    assert essays["prompt"].tolist() == ["07", "7"]
    assert essays["length"].tolist() == [100, 5]
    assert essays["source"].tolist() == ["3", "web"]
    assert list(read_essays(path, DATA, Scores(DATA, RegressionSettings()))) == ["text_id", "full_text", "a", "b"]


def test_a_column_of_the_split_may_be_a_text_or_a_target(tmp_path):
    folds = FoldsSettings(group_column="full_text", stratify_columns=("a",))
    essays = read_essays(write(tmp_path, HEAD + "x,1,1,2\nw,2,1,2\n"), DATA, Scores(DATA, RegressionSettings()), folds)
    assert essays["full_text"].tolist() == ["1", "2"]
    assert essays["a"].dtype == np.float32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEAD + "x,y,1,2\n", ["no column ['prompt', 'length', 'source']", "folds.group_column and folds.stratify_"]),
        (
            SPLIT_HEAD + "x,y,1,2,p,3,s\nw,z,1,2, ,3,s\nv,z,1,2,,3,s\n",
            ["2 cells of column prompt are empty, first in row 2 (text_id w); the split needs them: fill them in"],
        ),
        (SPLIT_HEAD + "x,y,1,2,p,,s\n", ["1 cells of column length are empty, first in row 1 (text_id x)"]),
    ],
)
def test_bad_columns_of_the_split_are_named(tmp_path, content, words):
    with pytest.raises(Fb3Error) as error:
        read_essays(write(tmp_path, content), DATA, Scores(DATA, RegressionSettings()), FOLDS)
    for word in [*words, "train.csv"]:
        assert word in str(error.value)


def test_a_missing_file_names_what_is_there(tmp_path):
    (tmp_path / "trian.csv").write_text("")
    with pytest.raises(Fb3Error, match=r"train\.csv: no such file.*trian\.csv"):
        read_essays(tmp_path / "train.csv", DATA, Scores(DATA, RegressionSettings()))


def test_ids_of_every_form_are_never_changed(tmp_path):
    essays = pd.DataFrame({"text_id": IDS, "full_text": IDS[::-1], "a": 1.5, "b": 2})
    write_csv(essays, tmp_path / "train.csv")
    found = read_essays(tmp_path / "train.csv", DATA, Scores(DATA, RegressionSettings()))
    assert found["text_id"].tolist() == IDS
    assert found["full_text"].tolist() == IDS[::-1]


def test_ids_of_every_form_come_out_of_inference_as_they_went_in(bundle, tmp_path):
    essays = pd.DataFrame({"text_id": IDS, "full_text": [f"Essay {n}." for n in range(len(IDS))]})
    write_csv(essays, tmp_path / "test.csv")
    infer(bundle, out=tmp_path / "submission.csv", test=tmp_path / "test.csv", strict=True)
    assert read_table(tmp_path / "submission.csv", [])["text_id"].tolist() == IDS
