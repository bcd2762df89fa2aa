"""Texts from elsewhere: CSV, YAML, JSON, lists, locks. Each reader reads them or says what is wrong."""

import json
import os
import time
import zipfile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fb3.bundles.images import read_image
from fb3.bundles.wheels import _requirements_of, locked
from fb3.data.augmentation.text_changes import read_synonyms
from fb3.data.essays import read_essays
from fb3.data.folds import read_folds
from fb3.data.tables import read_numbers
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings
from fb3.recipe.safe_yaml import LARGEST as LARGEST_YAML
from fb3.recipe.task import RegressionSettings
from fb3.rehearsal.notebooks import run_notebook
from fb3.runs.file_score import score_files
from fb3.runs.scores import read_scores
from fb3.system.files import LARGEST, read_json
from fb3.system.folder_lock import lock_folder
from fb3.targets.target import Scores
from fb3.training.run_log import RunLog
from fb3.tuning.space import read_space
from fb3.tuning.study import open_study
from tests.conftest import ROOT
from tests.hostile import damaged, fuzz, swapped, told

DATA = DataSettings(target_columns=("a", "b"))
ESSAYS = b'text_id,full_text,a,b,fold\n007,"one, ""two""\nthree",1,2,0\nx,\xc3\xa9t\xc3\xa9,3.5,5,1\nz,,4,1e0,0\n'
FOLDS = b"text_id,fold\n007,0\nx,1\nz,-1\n"
OOF = b"text_id,fold,true_a,a\n007,0,1.0,1.25\nx,1,3.5,3.0000000000000004\n"
SCORES = {"score": 0.5, "columns": {"a": 0.5}, "essays": 2, "complete": True, "folds": {"0": {"score": 0.5}}}
SPACE = {
    "optimizer.encoder_rate": {"low": 3.0e-5, "high": 3.0e-4, "log": True},
    "train.epochs": {"low": 2, "high": 5},
    "tricks": {"choices": [[], [{"kind": "fgm"}]]},
    "mine": {"overrides": True, "choices": [[], ["model.dropout=0.1", "task.r_drop={alpha: 1.0}"]]},
}
BASE = load_recipe("tiny")
RECIPE = yaml.safe_load(load_recipe("tiny", ["tricks=[{kind: fgm}]", "model.pooling.kind=gem"]).to_yaml())
IMAGE = b"# python 3.12.13\n# glibc 2.35\nnumpy==2.1.3\ntorch==2.6.0+cu124\n"
LOCK = f'a==1.0 ; python_version > "3" --hash=sha256:{"0" * 64}\nb==2 --hash=sha256:{"1" * 64}\n'.encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder whose files the examples write over."""
    return tmp_path_factory.mktemp("hostile")


def written(place, name, content):
    path = place / name
    path.write_bytes(content)
    return path


def read_split(path):
    essays = read_essays(written(path.parent, "whole.csv", ESSAYS), DATA)
    return read_folds(path, essays, "text_id")


def read_predicted(path):
    return score_files(path, written(path.parent, "truth.csv", ESSAYS))


def read_truth(path):
    return score_files(written(path.parent, "predicted.csv", ESSAYS), path)


TEXTS = {
    "essays": (ESSAYS, lambda path: read_essays(path, DATA, Scores(DATA, RegressionSettings()))),
    "unlabelled": (ESSAYS, lambda path: read_essays(path, DATA)),
    "folds": (FOLDS, read_split),
    "oof": (OOF, lambda path: read_numbers(path, "text_id", ["true_a", "a"])),
    "predictions": (ESSAYS, read_predicted),
    "truths": (ESSAYS, read_truth),
    "recipe": (yaml.safe_dump(RECIPE).encode(), load_recipe),
    "space": (yaml.safe_dump(SPACE).encode(), lambda path: read_space(path).check(BASE)),
    "scores": (json.dumps(SCORES).encode(), read_scores),
    "image": (IMAGE, lambda path: len(read_image(path).tags())),
    "wheels": (LOCK, locked),
    "synonyms": (b"large, big, great\nbegin, start\n", read_synonyms),
}


@pytest.mark.parametrize("kind", TEXTS)
@fuzz
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(kind, data, place):
    content, read = TEXTS[kind]
    told(read, written(place, f"{kind}.file", data.draw(damaged(content))))


@pytest.mark.parametrize("kind", TEXTS)
def test_the_files_that_are_damaged_are_good_ones(kind, place):
    content, read = TEXTS[kind]
    read(written(place, f"{kind}.file", content))


@pytest.mark.parametrize(
    ("read", "tree", "dump"),
    [
        (load_recipe, RECIPE, yaml.safe_dump),
        (lambda path: read_space(path).check(BASE), SPACE, yaml.safe_dump),
        (read_scores, SCORES, json.dumps),
    ],
    ids=["recipe", "space", "scores"],
)
@fuzz
@given(data=st.data())
def test_values_of_the_wrong_form_are_named(read, tree, dump, data, place):
    told(read, written(place, "tree.file", dump(data.draw(swapped(tree))).encode("utf-8", "surrogatepass")))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{there}: &{there} [{','.join(['*' + here] * 9)}]\n" for here, there in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", None),
        ("\ufefftrain: {epochs: 3}", None),
        ("[]", "a mapping"),
        ("1: 2", "should be strings"),
        ("{[1]: 2}", "unhashable"),
        ("train: &t {epochs: 3}\ntrain: *t", "twice"),
        (BOMB, "more than"),
        ("a: &a [*a]", "holds itself"),
        ("&a {train: *a}", "holds itself"),
        ("[" * (LARGEST_YAML - 1), "within one another"),
        ("{a: " * 9000, "within one another"),
        ("".join(f"k{n}: 1\n" for n in range(20_000)), "more than"),
        (f"train: {{seed: {'9' * 5000}}}", "5000 digits"),
        (f"train: {{seed: 0x{'f' * 5000}}}", "5002 digits"),
        ("train: {epochs: .nan}", "epochs"),
        ("optimizer: {encoder_rate: .inf}", "finite"),
        ("train: 2024-13-45", "month"),
        ("train: !!int x", "int"),
        ("train: !!bool x", "not YAML"),
        ("train: !!python/object/apply:os.mkdir [evil]", "could not determine a constructor"),
        ('data: {id_column: "\\ud800"}', "surrogates"),
        ("data: {id_column: \0}", "not allowed"),
        (b"\xff\xfe{", "not UTF-8 at byte 0"),
        ("data: {text: {template: '" + "{full_text}" * 1000 + "'}}", "11000 characters, at most 2000"),
        ("train: {epochs: " + "x" * 200_000 + "}", "epochs"),
    ],
)
def test_hostile_yaml(content, words, tmp_path):
    path = written(tmp_path, "r.yaml", content if isinstance(content, bytes) else content.encode())
    start = time.monotonic()
    found = told(load_recipe, path)
    assert time.monotonic() - start < 20
    if words is None:
        assert not isinstance(found, Exception)
    else:
        with pytest.raises(Fb3Error, match=words):
            raise found
    told(lambda path: read_space(path).check(BASE), path)


def test_an_alias_may_be_used_and_choices_have_a_number(tmp_path):
    text = "train.epochs: {choices: &c [1, 2]}\ntrain.batch_size: {choices: *c}"
    assert len(read_space(written(tmp_path, "s.yaml", text.encode())).entries) == 2
    text = f"train.epochs: {{choices: {list(range(1, 9000))}}}"
    with pytest.raises(Fb3Error, match=r"s\.yaml: train\.epochs: .*8999 choices, at most 200"):
        read_space(written(tmp_path, "s.yaml", text.encode()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "want a mapping, got list"),
        (b'"text"', "want a mapping, got str"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 200_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": "\\uD83D\\uDE00"}', None),
        (b'\xef\xbb\xbf{"a": NaN}', None),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"\0" * 1000, "not JSON"),
    ],
)
def test_hostile_json(content, words, tmp_path):
    found = told(read_json, written(tmp_path, "a.json", content))
    if words is None:
        assert "a" in found
    else:
        with pytest.raises(Fb3Error, match=words):
            raise found


def test_a_key_that_is_wanted_is_named(tmp_path):
    for content in (b"{}", b'{"a": "1"}', b'{"a": true}'):
        with pytest.raises(Fb3Error, match=r"a\.json: a is missing"):
            read_json(written(tmp_path, "a.json", content), {"a": int})


@pytest.mark.parametrize("read", [read_json, load_recipe, read_space, read_image, read_synonyms, locked, read_scores])
def test_a_file_of_a_gigabyte_is_refused_unread(read, tmp_path):
    path = tmp_path / "sparse.yaml"
    path.touch()
    os.truncate(path, 2**30)
    with pytest.raises(Fb3Error, match=r"sparse\.yaml: has 1\.1 GB, more than the"):
        read(path)


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(Fb3Error, match="not a plain file"):
            read_essays(tmp_path / name, DATA)
    with pytest.raises(Fb3Error, match=r"cannot be read|no such file"):
        read_json(tmp_path / "a\0b.json")


def test_a_csv_of_odd_size(tmp_path):
    start = time.monotonic()
    table = tmp_path / "t.csv"
    for content, words in [
        (b"," * 300_000, "more than once"),
        (b",".join(b"c%d" % n for n in range(100_000)), "no column"),
        (b'text_id,full_text\nx,"' + b"a" * 5_000_000, "not a CSV"),
        (b"text_id,full_text,a,b\nx,y,1," + b"9" * 5_000_000, "outside|no number"),
        (b"text_id,full_text,a,b\n" + b"x" * 5_000_000 + b",y,1,zz", "no number"),
        (b"text_id,full_text,a,b\nx,y,1,2\n" + b"\n" * 300_000 + b",", "row 2 has 2 cells"),
    ]:
        table.write_bytes(content)
        found = told(lambda path: read_essays(path, DATA, Scores(DATA, RegressionSettings())), table)
        with pytest.raises(Fb3Error, match=words):
            raise found
    table.write_bytes(b'text_id,full_text\nx,"' + b"a\n" * 2_500_000 + b'"\n')
    assert len(read_essays(table, DATA)["full_text"][0]) == 5_000_000
    os.truncate(table, 5 * 2**30)
    with pytest.raises(Fb3Error, match=r"t\.csv: has 5\.4 GB"):
        read_essays(table, DATA)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("cell", ["x", "1.5", "", "-2", "1e9", "9" * 400, "٣", "nan"])
def test_a_folds_csv_with_another_number(cell, tmp_path):
    path = written(tmp_path, "folds.csv", FOLDS.replace(b"x,1", f"x,{cell}".encode()))
    with pytest.raises(Fb3Error, match=r"folds\.csv: .* in row 2, column fold, is no fold's number"):
        read_split(path)


def test_out_of_fold_numbers_are_as_exact_as_written(tmp_path):
    assert read_numbers(written(tmp_path, "oof.csv", OOF), "text_id", ["a"])["a"][1] == 3.0000000000000004
    for cell in (b"nan", b"", b"1e999", b"x"):
        with pytest.raises(
            Fb3Error, match=r"oof\.csv: 1 cells hold no number, first .* in row 1 \(.*\), column a; copy"
        ):
            read_numbers(written(tmp_path, "oof.csv", OOF.replace(b"1.25", cell)), "text_id", ["a"])


@pytest.mark.parametrize(
    "line", ["# python 3.1000000000", "# python 3.12\n# glibc 2.999999999", f"# python {9:05000}.1"]
)
def test_an_image_list_whose_numbers_have_no_end(line, tmp_path):
    with pytest.raises(Fb3Error, match=r"i\.txt: (Python|glibc) .* is no version"):
        read_image(written(tmp_path, "i.txt", f"{line}\nnumpy==1.0\n".encode()))
    with pytest.raises(Fb3Error, match="is no version"):
        read_image(written(tmp_path, "i.txt", b"# python 3.12\nnumpy==" + b"9" * 5000))


def test_a_wheel_whose_metadata_would_fill_the_memory(tmp_path):
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a-1.dist-info/METADATA", b"\n" * (LARGEST + 1))
    with pytest.raises(Fb3Error, match="its METADATA has"):
        _requirements_of(path)
    small = tmp_path / "b-1-py3-none-any.whl"
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b-1.dist-info/METADATA", "Requires-Dist: numpy\n" * 20)
    content = bytearray(small.read_bytes())
    for at in range(0, len(content), 3):
        told(_requirements_of, written(tmp_path, "c-1-py3-none-any.whl", content[:at] + b"\xa5" + content[at + 1 :]))
    with pytest.raises(Fb3Error, match=r"deep\.lock: .* is no requirement \(") as error:
        locked(written(tmp_path, "deep.lock", b"a==1; " + b"(" * 5000))
    assert len(str(error.value)) < 1000, "a quotation, not the line"


def test_a_synonyms_file_with_a_byte_order_mark(tmp_path):
    assert "large" in read_synonyms(written(tmp_path, "s.txt", b"\xef\xbb\xbflarge, big\n"))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"cells": 3}', b'{"nbformat": "x"}', b"[" * 9000, b"\xff"])
def test_a_broken_notebook(content, tmp_path):
    path = written(tmp_path, "n.ipynb", content)
    with pytest.raises(Fb3Error, match=r"n\.ipynb: no"):
        run_notebook(path, tmp_path / "working", {})


def test_a_lock_with_any_content(tmp_path):
    import fcntl

    (tmp_path / "lock").write_bytes(b"\xff\0" * 100_000)
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Fb3Error, match="another fb3 train is at work") as error, lock_folder(tmp_path, "fb3 train"):
            pass
        assert len(str(error.value)) < 1000
    with lock_folder(tmp_path, "fb3 train"):
        assert (tmp_path / "lock").read_text().startswith("process")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_lock_that_is_no_plain_file_changes_nothing(kind, tmp_path):
    mine, lock = tmp_path / "mine", tmp_path / "run" / "lock"
    mine.write_text("precious")
    lock.parent.mkdir()
    {"link": lambda: lock.symlink_to(mine), "folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock)}[kind]()
    with pytest.raises(Fb3Error, match=r"run/lock: cannot be opened"), lock_folder(lock.parent, "fb3 train"):
        pass
    assert mine.read_text() == "precious"


def test_a_log_with_lines_that_are_not_ours(tmp_path):
    ours = b'{"event": "step", "fold": 0}\n'
    path = written(tmp_path, "log.jsonl", b"\xff\n[]\n" + b"[" * 100_000 + b"\n" + ours * 2 + b'{"half')
    log = RunLog(path, True, lambda values, step: None)
    assert log.lines(0) == 2
    log.cut(0, 1)
    assert path.read_bytes() == b"\xff\n[]\n" + b"[" * 100_000 + b"\n" + ours


@pytest.mark.parametrize("content", [b"no data base" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_study_that_is_none(content, tmp_path):
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(Fb3Error, match=r"study\.db: no study that can be read"):
        open_study(tmp_path, read_space("default"), 0)


def test_the_command_line_says_it_in_one_line(tmp_path):
    import subprocess
    import sys

    path = written(tmp_path, "r.yaml", BOMB.encode())
    done = subprocess.run([sys.executable, "-m", "fb3", "train", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}: not YAML")
    assert done.stderr.count("\n") == 1
