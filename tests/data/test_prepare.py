"""Own steps: prepare.py on a table, and a whole run with it, beside one on tables that it prepared beforehand."""

import re
import runpy
import shutil

import pandas as pd
import pytest

from fb3.bundles.images import find_image
from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.essays import read_essays
from fb3.data.joins import read_split
from fb3.data.prepare import load_prepare, prepare_table
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings, FilesSettings
from fb3.rehearsal.hidden_rows import ODD, invented_files, public_files, write_hidden_test
from fb3.rehearsal.rehearsal import check_submission, rehearse
from fb3.runs.joining import merge
from fb3.runs.run_folder import Member
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256, write_json
from fb3.training.run import train
from fb3.tuning.search import tune
from fb3.verification.check import verify
from tests.conftest import TINY, copied

TABLE = "text_id,full_text,a\nx,one,1\ny,NA,2\nz,three,3\n"
OWN = """\
from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass
class Count:
    words: int

    def quarter(self) -> float:
        return self.words / 4


def prepare(table: pd.DataFrame, split: str) -> pd.DataFrame:
    table["full_text"] = table["opening"] + " " + table.pop("rest")
    words = table["full_text"].str.split().str.len()
    table["words"] = [Count(each).quarter() for each in words]
    table["group"] = words % 7
    if split == "train":
        table = table[table["opening"] != "drop me"]
        assert "cohesion" in table
    return table
"""
RECIPE = [*TINY, "data.text.template='{words} {full_text}'", "folds={count: 2, group_column: group}"]


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture
def table(tmp_path):
    """A folder with train.csv and test.csv; gives a function that reads one by a prepare() of these lines."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(TABLE)

    def prepared(*lines, split="train", wanted=("text_id",), head="import numpy as np\nimport pandas as pd\n"):
        body = "".join(f"    {line}\n" for line in lines)
        (tmp_path / "own.py").write_text(f"{head}def prepare(table, split):\n{body}")
        data = DataSettings(prepare=str(tmp_path / "own.py"), target_columns=("a",))
        return read_split(tmp_path / f"{split}.csv", data, split, wanted)

    return prepared


def test_cells_are_texts_before_and_afterwards_as_a_csv_holds_them(table, tmp_path):
    columns = {
        "f": "[0.1, 1e-7, np.nan]",
        "f32": "np.array([0.1, 2, 3], np.float32)",
        "i": "[1, 2, 3]",
        "b": "[True, False, True]",
        "n": "pd.array([1, None, 3], dtype='Int64')",
        "o": "[None, 'NA', 2.5]",
        "d": "pd.to_datetime(['2020-01-01', '2021-02-03', None])",
        "c": "pd.Categorical(['u', 'v', 'u'])",
        "s": "pd.array(['p', None, ' q\\r\\n'], dtype='string')",
    }
    lines = [f"table[{name!r}] = {value}" for name, value in columns.items()]
    made = table("assert {*map(type, table.to_numpy().ravel())} == {str}", *lines, "return table.iloc[::-1]")
    module = load_prepare(tmp_path / "own.py")
    module(read(tmp_path / "train.csv"), "train").to_csv(tmp_path / "as.csv", index=False)
    pd.testing.assert_frame_equal(made.astype(object), read(tmp_path / "as.csv").astype(object))
    assert {*map(type, made.to_numpy().ravel())} == {str}
    assert made["text_id"].tolist() == ["z", "y", "x"]


def test_rows_come_and_go_in_train_and_keep_their_ids_and_order_in_test(table):
    assert table("return pd.concat([table[1:], table[1:]])")["text_id"].tolist() == ["y", "z", "y", "z"]
    assert table("return table.iloc[[2, 0, 1]]", split="test")["full_text"].tolist() == ["one", "NA", "three"]
    with pytest.raises(Fb3Error) as error:
        table("return table.assign(text_id=['x', 'w', 'x'])", split="test")
    assert re.search(
        r"own\.py: prepare\(\) changes the ids of .*test\.csv: 2 are lost \['y', 'z'\], 2 are new or stand there again "
        r"\['x', 'w'\]; where split is 'test', keep each row, once, with its id$",
        str(error.value),
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["table['b'] = 1", "return table['topic']"], "own.py, line 5: prepare() breaks on "),
        (["table['b'] = 1", "return table['topic']"], "train.csv, split 'train': KeyError: 'topic'; mend the file"),
        (["raise SystemExit(3)"], "own.py, line 4: prepare() breaks on "),
        (["return table.where("], "own.py, line 4: breaks when it is loaded: SyntaxError: "),
        (["import absent_package"], "ModuleNotFoundError: No module named 'absent_package'"),
        (["table['b'] = 1"], "gives no DataFrame of "),
        (["return table.drop(columns='text_id')"], "own.py returns it: no column ['text_id']; it has ['full_text', "),
        (["return pd.concat([table, table], axis=1)"], "the columns ['text_id', 'full_text', 'a'] more than once"),
    ],
)
def test_a_fault_is_told_with_file_line_and_mend(table, lines, words):
    with pytest.raises(Fb3Error, match=re.escape(words)) as error:
        table(*lines)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path, table):
    (tmp_path / "own.py").write_text("def prepared(table, split):\n    return table\n")
    with pytest.raises(Fb3Error, match=r"own\.py: no function prepare in it; write def prepare"):
        load_prepare(tmp_path / "own.py")
    with pytest.raises(Fb3Error, match=r"absent\.py: no such file; a path in data\.prepare begins at"):
        load_prepare(tmp_path / "absent.py")
    with pytest.raises(Fb3Error, match="prepare"):
        load_recipe("tiny", ["data.prepare=own.txt"])


def test_it_is_loaded_once_and_anew_when_it_changed(table, tmp_path, capsys):
    head = "import pandas as pd\ncalls = []\n"
    lines = ["calls.append(1)", "return table.assign(calls=len(calls))"]
    assert [table(*lines, head=head)["calls"][0] for _ in range(3)] == ["1", "2", "3"]
    assert capsys.readouterr().err.count("code of one's own") == 1
    assert table(*lines, "", head=head)["calls"][0] == "1"
    assert not list(tmp_path.rglob("__pycache__"))
    given = read(tmp_path / "train.csv")
    before = given.copy()
    prepare_table(given, tmp_path / "own.py", "train", "text_id", tmp_path / "train.csv")
    pd.testing.assert_frame_equal(given, before)


def test_it_sees_every_join_of_train_and_of_test_every_one_that_can_be_made(tmp_path, table):
    table("return table")
    topic = "table['title'] + '/' + table.get('author', '')"
    (tmp_path / "own.py").write_text(f"def prepare(table, split):\n    return table.assign(topic={topic})\n")
    (tmp_path / "titles_train.csv").write_text("text_id,title\nx,1\ny,2\nz,3\n")
    (tmp_path / "titles_test.csv").write_text("text_id,title\nx,4\ny,5\nz,6\n")
    (tmp_path / "authors_train.csv").write_text("text_id,author\nx,a\ny,b\nz,c\n")
    joins = [{"file": f"{name}_{{split}}.csv", "on": "text_id"} for name in ("titles", "authors")]
    data = DataSettings(
        prepare=str(tmp_path / "own.py"),
        target_columns=("a",),
        text={"template": "{topic} {full_text}"},
        files=FilesSettings(joins=joins),
    )
    assert read_essays(tmp_path / "train.csv", data)["topic"].tolist() == ["1/a", "2/b", "3/c"]
    assert read_essays(tmp_path / "test.csv", data, split="test")["topic"].tolist() == ["4/", "5/", "6/"]
    (tmp_path / "authors_train.csv").unlink()
    with pytest.raises(Fb3Error, match=r"authors_train\.csv: no such file"):
        read_essays(tmp_path / "train.csv", data)


def test_the_path_begins_at_the_recipes_file_before_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / "here"):
        (place / "own.py").write_text("")
    (tmp_path / "here" / "mine.yaml").write_text("data: {prepare: own.py}")
    assert load_recipe("here/mine.yaml").data.prepare == str(tmp_path / "here" / "own.py")
    assert load_recipe("here/mine.yaml", ["train.epochs=1"]).data.prepare == str(tmp_path / "here" / "own.py")
    assert load_recipe("here/mine.yaml", ["data.prepare=own.py"]).data.prepare == "own.py"
    assert load_recipe("tiny", competition="here/mine.yaml").data.prepare == str(tmp_path / "here" / "own.py")


@pytest.fixture(scope="module")
def world(competition, tmp_path_factory):
    """Two folders: the raw files with a recipe and its prepare.py, and the files that it prepared beforehand."""
    raw, ready = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("ready")
    (raw / "own.py").write_text(OWN)
    (raw / "mine.yaml").write_text(load_recipe("tiny", [*RECIPE, "data.prepare=own.py"]).to_yaml())
    prepare = runpy.run_path(raw / "own.py")["prepare"]
    for split in ("train", "test"):
        table = read(competition / f"{split}.csv")
        words = table.pop("full_text").str.split(" ", n=5)
        table.insert(1, "opening", words.str[:5].str.join(" "))
        table["rest"] = words.str[5:].str.join(" ")
        if split == "train":
            table.loc[:3, "opening"] = "drop me"
        table.to_csv(raw / f"{split}.csv", index=False)
        prepare(read(raw / f"{split}.csv"), split).to_csv(ready / f"{split}.csv", index=False)
        shutil.copy(competition / "sample_submission.csv", raw if split == "train" else ready)
    return raw, ready


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The run on the raw files, trained in two parts and joined, the run on the prepared ones, and their bundles."""
    out, (raw, ready) = tmp_path_factory.mktemp("runs"), world
    parts = [train(raw / "mine.yaml", raw, out / f"part{fold}", folds=[fold]).path for fold in (0, 1)]
    runs = [merge(parts, out / "own").path, train(load_recipe("tiny", RECIPE), ready, out / "plain").path]
    (raw / "own.py").rename(raw / "gone.py")  # the run's own copy serves from now on
    bundles = [write_bundle([run], out / f"bundle-{run.name}", check=replay(None)).path for run in runs]
    (raw / "gone.py").rename(raw / "own.py")
    return out, bundles


def test_a_run_with_own_steps_is_the_run_on_files_prepared_beforehand(world, trained, tmp_path, capsys):
    out, bundles = trained
    assert len(read(out / "own" / "oof.csv")) == 56
    assert (out / "own" / "oof.csv").read_bytes() == (out / "plain" / "oof.csv").read_bytes()
    bundles = [copied(bundle, tmp_path / bundle.name) for bundle in bundles]
    for number, (bundle, data) in enumerate(zip(bundles, world, strict=True)):
        infer(bundle, data, tmp_path / f"{number}.csv", strict=True)
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()
    packed = bundles[0] / "runs" / "own" / "prepare.py"
    assert packed.read_text() == OWN
    assert capsys.readouterr().err.count(f"runs {packed}: code of one's own") == 1
    manifest = read_json(bundles[0] / "manifest.json")
    assert manifest["files"]["runs/own/prepare.py"]["sha256"] == sha256(world[0] / "own.py")
    assert manifest["parity"]["largest_difference"]
    assert read_json(out / "own" / "environment.json")["prepare_sha256"] == sha256(packed)
    assert "prepare: prepare.py" in (out / "own" / "recipe.yaml").read_text()
    assert not [path for place in (out, world[0]) for path in place.rglob("__pycache__") if "fb3" not in path.parts]


def test_verify_runs_it_only_where_its_hash_is_right(world, trained, tmp_path):
    for path in (trained[0] / "own", trained[1][0]):
        report = verify(path, world[0], essays=2)
        assert report.passed, report.text()
        assert "prepare.py: by hash" in report.text()
        changed = copied(path, tmp_path / path.name)
        file = next(changed.rglob("prepare.py"), None) if path.name == "own" else changed / "runs/own/prepare.py"
        file.write_text("raise SystemExit('it ran')")
        report = verify(changed, world[0])
        assert re.search(r"prepare\.py: (not the file that|its hash|\d+ bytes)", report.text())
        assert "which is not run as it is" in report.text()
        assert "it ran" not in report.text()


def test_a_run_goes_on_with_its_own_steps_alone(world, trained, tmp_path):
    part = copied(trained[0] / "part0", tmp_path / "part")
    shutil.copytree(world[0], tmp_path / "data")
    (tmp_path / "data" / "own.py").rename(tmp_path / "data" / "renamed.py")
    same = load_recipe("tiny", [*RECIPE, f"data.prepare={tmp_path / 'data' / 'renamed.py'}"])
    assert train(same, world[0], part, folds=[0], resume=True).folds == [0]
    assert train(part / "recipe.yaml", world[0], part, folds=[0], resume=True).folds == [0]
    (tmp_path / "data" / "renamed.py").write_text(OWN + "\n# changed\n")
    with pytest.raises(Fb3Error, match=r"was trained with another prepare\.py; choose another --out"):
        train(same, world[0], part)
    (part / "prepare.py").write_text(OWN + "\n# changed\n")
    with pytest.raises(Fb3Error, match=r"prepare\.py: not the file that the run was trained with"):
        write_bundle([part], tmp_path / "bundle")
    (part / "prepare.py").write_text(OWN)
    text = (part / "recipe.yaml").read_text()
    (part / "recipe.yaml").write_text(text.replace("prepare: prepare.py", f"prepare: {world[0] / 'own.py'}"))
    with pytest.raises(Fb3Error, match=r"prepare\.py: missing, or not what data\.prepare in recipe\.yaml names"):
        write_bundle([part], tmp_path / "bundle")
    (part / "recipe.yaml").write_text(text)
    (part / "prepare.py").unlink()
    with pytest.raises(Fb3Error, match=r"prepare\.py: missing, or not what data\.prepare in recipe\.yaml names"):
        write_bundle([part], tmp_path / "bundle")


def test_runs_with_the_same_own_steps_are_packed_together_and_others_apart(world, trained, tmp_path, capsys):
    other = copied(trained[0] / "own", tmp_path / "other")
    bundle = write_bundle([trained[0] / "own", other], tmp_path / "both").path
    assert capsys.readouterr().err.count("prepare.py: packed; it is code of one's own, which runs at inference") == 2
    one, two = (infer(path, world[0], tmp_path / "s.csv", strict=True) for path in (bundle, trained[1][0]))
    pd.testing.assert_frame_equal(one, two)
    (other / "prepare.py").write_text(OWN + "\n# other\n")
    environment = read_json(other / "environment.json") | {"prepare_sha256": sha256(other / "prepare.py")}
    write_json(environment, other / "environment.json")
    with pytest.raises(Fb3Error, match=r"data\.prepare, by hash is .* pack them separately"):
        write_bundle([trained[0] / "own", other], tmp_path / "bundle")
    stray = copied(trained[0] / "own", tmp_path / "stray")
    (stray / "encoder" / "prepare.py").write_text("")
    with pytest.raises(Fb3Error, match=r"encoder/prepare\.py: may run code"):
        write_bundle([stray], tmp_path / "bundle")


def test_hidden_rows_are_raw_and_pass(world, trained, tmp_path):
    raw, bundle = world[0], trained[1][0]
    path = bundle / "runs" / "own"
    member = Member("own", path, load_recipe(path / "recipe.yaml"), [path / "fold0"])
    for name, public in {
        "public": public_files(raw, member.recipe.data.files),
        "invented": invented_files(member.recipe, raw),
    }.items():
        copies = write_hidden_test(raw, member.recipe, public, tmp_path / name, 60)
        hidden = read(tmp_path / name / "test.csv")
        assert sorted(hidden) == ["opening", "rest", "text_id"]
        assert "" in set(hidden["rest"])
        assert len(copies) >= 10
        infer(bundle, tmp_path / name, tmp_path / "s.csv", strict=True)
        check_submission(member, tmp_path / name / "sample_submission.csv", tmp_path / "s.csv", copies)
    whole = set(zip(*(read(raw / "train.csv")[name] for name in ("opening", "rest")), strict=True))
    assert sum(pair in whole for pair in zip(hidden["opening"], hidden["rest"], strict=True)) == 60 - len(ODD)


def rewritten(bundle, change):
    """Changes the packed prepare.py, and its entry in the manifest."""
    path = bundle / "runs" / "own" / "prepare.py"
    path.write_text(change(path.read_text()))
    manifest = read_json(bundle / "manifest.json")
    manifest["files"]["runs/own/prepare.py"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    write_json(manifest, bundle / "manifest.json")
    return bundle


def test_own_steps_that_break_on_hidden_rows_do_not_cost_the_submission(world, trained, tmp_path, monkeypatch, capsys):
    breaks = rewritten(copied(trained[1][0], tmp_path / "b"), lambda text: text.replace("% 7", "// 0 / 'x'"))
    with pytest.raises(Fb3Error, match=r"prepare\.py, line 20: prepare\(\) breaks on .*test\.csv, split 'test'"):
        infer(breaks, world[0], tmp_path / "s.csv")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    (tmp_path / "hidden").mkdir()
    read(world[0] / "test.csv").iloc[:7].to_csv(tmp_path / "hidden" / "test.csv", index=False)
    shutil.copy(world[0] / "sample_submission.csv", tmp_path / "hidden")
    found = infer(breaks, tmp_path / "hidden", tmp_path / "s.csv")
    assert found["text_id"].tolist() == read(tmp_path / "hidden" / "test.csv")["text_id"].tolist()
    assert "stays as it stands" in capsys.readouterr().err
    assert "prepare() breaks on" in read_json(tmp_path / "s.report.json")["error"]
    changed = copied(trained[1][0], tmp_path / "c")
    (changed / "runs" / "own" / "prepare.py").write_text(OWN.replace("7", "8"))
    infer(changed, world[0], tmp_path / "s.csv")
    assert "its hash is not the packed file's" in read_json(tmp_path / "s.report.json")["folds"][0]["reason"]


def test_a_package_that_the_image_lacks_fails_the_rehearsal_by_name(world, trained, tmp_path, without_network):
    lacks = rewritten(copied(trained[1][0], tmp_path / "b"), lambda text: f"{text}\nimport iterstrat\n")
    report = rehearse(lacks, world[0], find_image("py312"), rows=12)
    assert not report.passed
    assert "ModuleNotFoundError: No module named 'iterstrat'" in report.failures[0]


def test_a_search_keeps_own_steps(world, tmp_path):
    data = copied(world[0], tmp_path / "data")
    study = tune(load_recipe(data / "mine.yaml"), data, tmp_path / "study", trials=1)
    (data / "own.py").write_text(OWN + "\n# changed\n")
    assert load_recipe(study.recipe).data.prepare == str(tmp_path / "study" / "prepare.py")
    assert (tmp_path / "study" / "trial0000" / "prepare.py").read_text() == OWN
    assert len(tune(load_recipe(tmp_path / "study" / "base.yaml"), data, tmp_path / "study", trials=1).rows) == 1
    with pytest.raises(Fb3Error, match=r"its trials were made with another prepare\.py"):
        tune(load_recipe(data / "mine.yaml"), data, tmp_path / "study", trials=1)
