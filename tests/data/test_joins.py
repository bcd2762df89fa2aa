"""Joins: columns of further tables and texts of folders, and a whole run that reads them, beside one that has them."""

import gzip
import re

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.bundle import read_bundle
from fb3.bundles.packing import write_bundle
from fb3.data.column_guess import guess_columns
from fb3.data.essays import read_essays
from fb3.data.joins import read_split
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings, FilesSettings, FoldsSettings
from fb3.recipe.task import RegressionSettings
from fb3.rehearsal.hidden_rows import public_files, public_paths, write_hidden_test
from fb3.submission.inference import infer
from fb3.system.kaggle import find_competition
from fb3.targets.target import Scores
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import TINY

HEAD = "text_id,full_text,a,prompt_id\n"
ROWS = HEAD + "x,one,1,p1\ny,two,2,p2\nz,three,3,p1\n"
PROMPTS = "title,prompt_id,topic\nFirst,p1,NA\nSecond,p2,\nThird,p3,pets\n"


def data(*joins, **settings):
    return DataSettings(**{"target_columns": ("a",), **settings}, files=FilesSettings(joins=joins))


def folder_of(tmp_path, **files):
    for name, content in {"train_csv": ROWS, **files}.items():
        path = tmp_path / name.replace("_csv", ".csv").replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return tmp_path / "train.csv"


BY_PROMPT = {"file": "prompts_{split}.csv", "on": "prompt_id"}


def test_columns_are_joined_in_the_essays_order_exactly_and_only_where_they_are_wanted(tmp_path):
    path = folder_of(tmp_path, prompts_train_csv=PROMPTS)
    table = read_split(path, data(BY_PROMPT), "train", ["text_id", "topic"])
    assert table[["text_id", "title", "topic"]].to_numpy().tolist() == [
        ["x", "First", "NA"],
        ["y", "Second", ""],
        ["z", "First", "NA"],
    ]
    (tmp_path / "prompts_train.csv").unlink()  # nothing of it is wanted
    assert list(read_split(path, data(BY_PROMPT), "train", ["text_id", "full_text"])) == HEAD.strip().split(",")


def test_a_joined_column_can_be_the_text_a_group_or_the_key_of_a_further_join(tmp_path):
    authors, places = "text_id,author\nz,3\nx,1\ny,1\n", "author,place\n1,sea\n3,hill\n"
    path = folder_of(tmp_path, authors_csv=authors, places_csv=places, notes__p1_txt="", prompts_train_csv=PROMPTS)
    joins = [{"file": "places.csv", "on": "author"}, {"file": "authors.csv", "on": "text_id"}]
    settings = data(*joins[::-1], BY_PROMPT, text_column="title")
    folds = FoldsSettings(group_column="place", stratify_columns=("author",))
    essays = read_essays(path, settings, Scores(settings, RegressionSettings()), folds)
    assert essays["place"].tolist() == ["sea", "sea", "hill"]
    assert essays["author"].tolist() == [1, 1, 3]
    assert essays["title"].tolist() == ["First", "Second", "First"]


def test_texts_of_a_folder_are_read_as_they_stand(tmp_path):
    path = folder_of(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "p1.txt").write_bytes('\ufeff"a",\r\n NA\r'.encode())
    (tmp_path / "train" / "p2.txt").write_bytes(b"")
    join = {"folder": "{split}", "on": "prompt_id", "into": "essay_text"}
    table = read_split(path, data(join), "train", ["essay_text"])
    assert table["essay_text"].tolist() == ['"a",\r\n NA\r', "", '"a",\r\n NA\r']


FOLDER = {"folder": "texts", "on": "prompt_id", "into": "topic"}


@pytest.mark.parametrize(
    ("join", "files", "words"),
    [
        (BY_PROMPT, {}, "prompts_train.csv: no such file; tables in"),
        (BY_PROMPT, {"prompts_train_csv": "id,topic\np1,x\n"}, "prompts_train.csv: no column ['prompt_id']; it has"),
        ({**BY_PROMPT, "columns": ["topics"]}, {"prompts_train_csv": PROMPTS}, "no column ['topic']; it has"),
        (
            BY_PROMPT,
            {"prompts_train_csv": PROMPTS.replace("p2", "p1")},
            "prompts_train.csv: 1 keys of column prompt_id stand there again, first 'p1' in row 2; leave one row a key",
        ),
        (
            BY_PROMPT,
            {"prompts_train_csv": PROMPTS.replace("p1", "P1")},
            "train.csv: 'p1' in row 1, column prompt_id, is no prompt_id of",
        ),
        (
            BY_PROMPT,
            {"prompts_train_csv": PROMPTS.replace("title", "full_text")},
            "gives ['full_text'], which",
        ),
        (
            {**BY_PROMPT, "on": "prompt"},
            {"prompts_train_csv": PROMPTS.replace("prompt_id", "prompt")},
            "'prompt', the key",
        ),
        (FOLDER, {"texts__p1.txt": ""}, "'p2' in row 2, column prompt_id, has no file of its name (KEY.txt) in"),
        (
            FOLDER,
            {"texts__p1.txt": "", "train_csv": HEAD + "x,y,1,../train\n"},
            "'../train' in row 1, column prompt_id, is no",
        ),
        (FOLDER, {"texts__p1.txt": "", "train_csv": HEAD + "x,y,1,..\n"}, "'..' in row 1, column prompt_id, is no"),
        (FOLDER, {"texts__p1.txt": "", "train_csv": HEAD + "x,y,1,\n"}, "'' in row 1, column prompt_id, is no"),
        (FOLDER, {"texts__p1.txt": "", "train_csv": HEAD + "x,y,1,C:\\p1\n"}, "is no name of a file in"),
    ],
)
def test_a_bad_join_is_told_with_file_key_and_mend(tmp_path, join, files, words):
    path = folder_of(tmp_path, **files)
    with pytest.raises(Fb3Error, match=re.escape(words)):
        read_split(path, data(join), "train", ["text_id", "topic"])


@pytest.mark.parametrize(
    ("join", "words"),
    [
        ("{on: a}", "give either file, a table, or folder"),
        ("{file: a.csv, folder: b, on: a, into: c}", "give either file, a table, or folder"),
        ("{folder: b, on: a}", "into names the column of a folder's texts"),
        ("{file: a.csv, on: a, columns: [a]}", "'a' is the key"),
        ("{file: ../a.csv, on: a}", "want a name within the competition's folder"),
        ("{file: 'a_{x}.csv', on: a}", r"only \{split\} may stand in braces"),
    ],
)
def test_bad_settings_of_a_join(join, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", [f"data.files.joins=[{join}]"])


AES2 = {"essay_id": ["a1", "b2", "c3"], "full_text": ["Some words here.", "And a few more.", "Last"]}
GUESSES = {
    "score": ({**AES2, "score": "123"}, [], ("essay_id", "full_text", ["score"])),
    "sample": (
        {**AES2, "target": ["0.5", "1", "2"], "standard_error": ["0.1", "0.2", "0.3"]},
        ["essay_id", "target"],
        ("essay_id", "full_text", ["target"]),
    ),
    "a number as a key": (
        {**AES2, "prompt_id": "010", "generated": "001"},
        [],
        ("essay_id", "full_text", ["generated"]),
    ),
    "labels": ({**AES2, "grade": ["low", "low", "high"]}, [], ("essay_id", "full_text", [])),
    "nothing": ({"x": ["1", "1", "2"]}, [], (None, None, ["x"])),
    "no rows": ({"id": [], "text": []}, [], (None, None, [])),
}


@pytest.mark.parametrize("case", GUESSES)
def test_columns_are_guessed(case):
    columns, sample, wanted = GUESSES[case]
    table = pd.DataFrame({name: list(cells) for name, cells in columns.items()}, dtype=object)
    found = guess_columns(table, sample)
    assert (found.id, found.targets) == (wanted[0], wanted[2]) or case == "no rows"
    assert found.text == wanted[1] or case == "no rows"


def test_wrong_columns_are_told_with_the_overrides_that_would_fit(tmp_path):
    pd.DataFrame({**AES2, "score": [1, 2, 3]}).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(Fb3Error) as error:
        read_essays(tmp_path / "train.csv", DataSettings(), Scores(DataSettings(), RegressionSettings()))
    assert str(error.value).endswith(
        "say what they are called: data.id_column=essay_id 'data.target_columns=[score]' would fit; or --competition "
        "aes2, whose columns these are"
    )
    with pytest.raises(Fb3Error, match=r"no column .*: data\.id_column=essay_id would fit$"):
        read_essays(tmp_path / "train.csv", DataSettings())


RECIPE = [
    *TINY,
    "data.text.template='{topic}: {full_text} {note}'",
    "data.sample=40",
    "folds.count=2",
]
FILES = [
    "data.files.train=essays.tsv",
    "data.files.test=hidden.csv",
    "data.files.sample=form.csv",
    "data.files.joins=[{file: 'topics_{split}.csv', on: prompt_id, columns: topic}, "
    "{folder: 'notes/{split}', on: text_id, into: note}]",
]


@pytest.fixture(scope="module")
def both(competition, tmp_path_factory):
    """The same competition twice: with two more columns in its tables, and with these in other files."""
    plain, apart = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("apart")
    for split in ("train", "test"):
        table = pd.read_csv(competition / f"{split}.csv", dtype=str, keep_default_na=False)
        table["prompt_id"] = [f"p{n % 3}" for n in range(len(table))]
        table["topic"] = table["prompt_id"].map({"p0": "NA", "p1": "school, or\nwork", "p2": ""})
        table["note"] = [f"note {n}" for n in range(len(table))]
        table.to_csv(plain / f"{split}.csv", index=False)
        for name, note in zip(table["text_id"], table["note"], strict=True):
            path = apart / "notes" / split / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(note)
        table[["prompt_id", "topic"]].drop_duplicates().to_csv(apart / f"topics_{split}.csv.zip", index=False)
        own = table.drop(columns=["topic", "note"])
        form = (
            {"path_or_buf": apart / "essays.tsv.gz", "sep": "\t"}
            if split == "train"
            else {"path_or_buf": apart / "hidden.csv"}
        )
        own.to_csv(**form, index=False)
    content = (competition / "sample_submission.csv").read_bytes()
    (plain / "sample_submission.csv").write_bytes(content)
    (apart / "form.csv.gz").write_bytes(gzip.compress(content))
    return plain, apart


@pytest.fixture(scope="module")
def trained(both, tmp_path_factory):
    """A run of each, and its bundle."""
    out, bundles = tmp_path_factory.mktemp("runs"), []
    for data, files in zip(both, ([], FILES), strict=True):
        run = train(load_recipe("tiny", [*RECIPE, *files]), data, out / data.name).path
        bundles.append(write_bundle([run], out / f"bundle-{data.name}").path)
    return out, bundles


def test_a_run_on_joined_files_of_other_names_and_forms_is_the_run_on_one_table(both, trained, tmp_path):
    out, bundles = trained
    one, two = ((out / data.name / "oof.csv").read_bytes() for data in both)
    assert one == two
    submissions = [infer(bundle, data, tmp_path / "s.csv") for bundle, data in zip(bundles, both, strict=True)]
    pd.testing.assert_frame_equal(*submissions)
    for data in both:
        report = verify(out / data.name, essays=2)
        assert report.passed, report.text()
        assert "not made" not in report.text()


def test_the_folder_is_found_by_the_recipes_names(both, trained):
    files = load_recipe("tiny", FILES).data.files
    assert find_competition(both[1].parent, files.markers()) == both[1]
    assert find_competition(both[1], ["absent.csv", files.test]) == both[1]


def test_another_joined_file_is_another_run(both, trained, tmp_path):
    note = both[1] / "notes" / "train" / f"{pd.read_csv(both[0] / 'train.csv', dtype=str)['text_id'][0]}.txt"
    before = note.read_text()
    note.write_text("changed")
    try:
        report = verify(trained[0] / both[1].name)
        assert not report.passed
        assert "notes/train: not the file that the run was trained on" in report.text()
    finally:
        note.write_text(before)


def test_hidden_rows_come_with_the_files_that_are_joined_to_them(both, trained, tmp_path):
    recipe = read_bundle(trained[1][1]).members()[0].recipe
    paths = public_paths(both[1], recipe.data)
    assert {path.name for path in paths} == {"hidden.csv", "form.csv.gz", "topics_test.csv.zip", "test"}
    copies = write_hidden_test(both[1], recipe, public_files(both[1], recipe.data.files), tmp_path / "hidden", 60)
    assert copies
    found = infer(trained[1][1], tmp_path / "hidden", tmp_path / "s.csv", strict=True)
    assert len(found) == 60
    hidden = read_split(tmp_path / "hidden" / "hidden.csv", recipe.data, "test", ["text_id", "topic", "note"])
    train_table = pd.read_csv(both[0] / "train.csv", dtype=str, keep_default_na=False)
    whole = {*train_table[["full_text", "topic", "note"]].itertuples(index=False, name=None)}
    drawn = [row in whole for row in hidden[["full_text", "topic", "note"]].itertuples(index=False, name=None)]
    assert sum(drawn) == 60 - 8  # the odd texts
    assert not {"topic", "note"} & {*pd.read_csv(tmp_path / "hidden" / "hidden.csv").columns}


def test_a_hidden_key_without_a_row_costs_only_its_own_cells(both, trained, tmp_path, monkeypatch, capsys):
    recipe = read_bundle(trained[1][1]).members()[0].recipe
    write_hidden_test(both[1], recipe, public_files(both[1], recipe.data.files), tmp_path, 20)
    gone = sorted((tmp_path / "notes" / "test").iterdir())[0]
    gone.unlink()
    with pytest.raises(Fb3Error, match=f"{gone.stem}.*has no file of its name"):
        infer(trained[1][1], tmp_path, tmp_path / "s.csv")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    found = infer(trained[1][1], tmp_path, tmp_path / "s.csv")
    assert "These cells stay empty" in capsys.readouterr().err
    assert np.unique(found.iloc[:, 1]).size > 5  # predictions, not the training means
