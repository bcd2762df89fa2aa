"""Rehearsals of sound and of broken bundles."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fb3.bundles.bundle import read_bundle
from fb3.bundles.images import find_image
from fb3.bundles.packing import write_bundle
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.rehearsal.hidden_rows import ODD, invented_files, public_files, write_hidden_test
from fb3.rehearsal.rehearsal import check_submission, fractions_for_whole_numbers, rehearse
from fb3.rehearsal.sandbox import importable
from fb3.runs.run_folder import Member
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256, write_json
from fb3.targets.decisions import Decision
from fb3.training.run import train
from tests.conftest import copied


@pytest.fixture
def image():
    return find_image("py312")


def rewritten(bundle, name, change):
    """Changes a packed file, and its entry in the manifest."""
    path = bundle / name
    path.write_text(change(path.read_text()))
    manifest = read_json(bundle / "manifest.json")
    manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    write_json(manifest, bundle / "manifest.json")
    return bundle


def test_a_sound_bundle_passes_on_the_public_files_and_in_both_layouts(
    bundle, competition, image, tmp_path, without_network
):
    kept = tmp_path / "kept"
    report = rehearse(bundle, competition, image, rows=60, keep=kept)
    assert report.passed, report.text()
    assert {name: layout["rows"] for name, layout in report.layouts.items()} == {
        "public": 20,
        "new": 60,
        "old": 40,
    }
    assert list(report.layouts["new"]["phases"]) == ["first file", "tokens", "all"]
    assert report.layouts["new"]["peak_memory"] > 2**27
    assert report.projection["t4"] > 0
    assert "PASSED" in report.text()
    assert json.loads(report.json())["passed"] is True
    assert "iterstrat" not in importable(image)
    for name in ("test.csv", "sample_submission.csv"):
        assert (kept / "competition-public" / name).read_bytes() == (competition / name).read_bytes()
    reruns = [
        "KAGGLE_IS_COMPETITION_RERUN" in read_json(kept / n / "spec.json")["env"] for n in ("public", "new", "old")
    ]
    assert reruns == [False, True, True], "an error in the run on the public files is to fail the notebook"


def test_an_import_that_the_image_lacks_is_named(bundle, competition, image, tmp_path, without_network):
    broken = rewritten(
        copied(bundle, tmp_path / "b"), "fb3/submission/device_pool.py", lambda text: "import iterstrat\n" + text
    )
    report = rehearse(broken, competition, image, rows=12)
    assert not report.passed
    assert "No module named 'iterstrat'" in report.text()


def test_a_try_to_reach_the_network_fails_and_is_told(bundle, competition, image, tmp_path, without_network):
    hub = "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/model', timeout=5)\n"
    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/submission/device_pool.py", lambda text: hub + text)
    report = rehearse(broken, competition, image, rows=12)
    assert "unreachable" in report.text()


def test_inputs_are_read_only(bundle, competition, image, tmp_path, without_network):
    write = "from pathlib import Path\nPath(__file__).with_name('x').write_text('')\n"
    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/submission/device_pool.py", lambda text: write + text)
    report = rehearse(broken, competition, image, rows=12)
    assert "Read-only file system" in report.text()
    assert not (broken / "fb3" / "x").exists()


def test_rows_in_another_order_than_their_ids_are_noticed(bundle, competition, image, tmp_path, without_network):
    def shuffle(text):
        assert "values[rows], task.target.columns, name)" in text
        return text.replace(
            "values[rows], task.target.columns, name)", "values[rows][::-1], task.target.columns, name)"
        )

    broken = rewritten(copied(bundle, tmp_path / "b"), "fb3/prediction/inference_loop.py", shuffle)
    report = rehearse(broken, competition, image, rows=60)
    assert "are the same essay" in report.text()
    assert "public" in report.layouts, "twenty different essays show nothing"


def test_columns_that_are_not_the_real_files_fail_on_those(bundle, competition, image, tmp_path, without_network):
    data = copied(competition, tmp_path / "data")
    sample = pd.read_csv(data / "sample_submission.csv", dtype=str)
    sample.rename(columns={"syntax": "structure"}).to_csv(data / "sample_submission.csv", index=False)
    report = rehearse(bundle, data, image, rows=12)
    assert not report.passed
    assert len(report.failures) == 1
    assert report.failures[0].startswith("public files: ")
    assert "sample_submission.csv: no column ['syntax']" in report.text()
    assert report.layouts == {}
    assert "hidden rows were left out" in report.notes[-1]


def test_without_namespaces_it_is_weaker_and_without_public_files_it_invents(
    bundle, competition, image, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PATH", "")
    shutil.copyfile(competition / "train.csv", tmp_path / "train.csv")
    report = rehearse(bundle, tmp_path, image, rows=12)
    assert report.passed, report.text()
    assert "weaker" in report.text()
    assert "hidden rows were invented from the recipe" in report.text()
    assert set(report.layouts) == {"new", "old"}


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def templated(competition, tmp_path_factory):
    """A competition with a topic beside each essay, and the bundle of a run whose template joins them."""
    data = copied(competition, tmp_path_factory.mktemp("templated") / "data")
    for name in ("train.csv", "test.csv"):
        table = read(data / name)
        table.assign(topic=[f"topic {n % 7} " * 9 for n in range(len(table))]).to_csv(data / name, index=False)
    wishes = ["train.epochs=1", "data.text.template='On {topic}: {full_text}'", "optimizer.head_rate=0.1"]
    run = train(load_recipe("tiny", wishes), data, data.parent / "run", folds=[0])
    return write_bundle([run.path], data.parent / "bundle").path, data


def test_with_a_template_whole_rows_are_drawn_and_copies_compared_by_all_texts(templated, tmp_path):
    bundle, data = templated
    member = read_bundle(bundle).members()[0]
    copies = write_hidden_test(data, member.recipe, public_files(data), tmp_path, 100)
    train, test = read(data / "train.csv"), read(tmp_path / "test.csv")
    whole = set(zip(train["topic"], train["full_text"], strict=True))
    apart = [pair for pair in zip(test["topic"], test["full_text"], strict=True) if pair not in whole]
    assert len(apart) == len(ODD), "only the odd essays stand beside another row's topic"
    texts = test.set_index("text_id")[["topic", "full_text"]]
    assert len(copies) >= 10
    assert all((texts.loc[one] == texts.loc[two]).all() for one, two in copies.items())
    infer(bundle, tmp_path, tmp_path / "s.csv", strict=True)
    check_submission(member, tmp_path / "sample_submission.csv", tmp_path / "s.csv", copies)


@pytest.mark.parametrize(("low", "high", "rate"), [(0, 100, 1.0), (0, 1, 0.01)])
def test_copies_are_compared_on_the_scores_own_scale(competition, tmp_path, low, high, rate):
    data = copied(competition, tmp_path / "data")
    essays, wishes = read(data / "train.csv"), [f"task.minimum={low}", f"task.maximum={high}"]
    columns = list(load_recipe("tiny").data.target_columns)
    essays[columns] = low + (essays[columns].astype(float) - 1) / 4 * (high - low)
    essays.to_csv(data / "train.csv", index=False)
    recipe = load_recipe("tiny", [*wishes, f"optimizer.head_rate={rate}", "predict.precision=bf16", "train.epochs=3"])
    bundle = write_bundle([train(recipe, data, tmp_path / "run", folds=[0]).path], tmp_path / "bundle").path
    member, hidden = read_bundle(bundle).members()[0], tmp_path / "hidden"
    copies = write_hidden_test(data, recipe, invented_files(recipe, data), hidden, 100)
    infer(bundle, hidden, tmp_path / "s.csv", strict=True)
    sample = hidden / "sample_submission.csv"
    check_submission(member, sample, tmp_path / "s.csv", copies)
    sound = read(tmp_path / "s.csv")
    shuffled = sound.assign(**{column: np.roll(sound[column], 1) for column in columns})
    one = sound.copy()  # by 3 % of the range: 0.12 between 1 and 5, where 0.05 is allowed
    row = one.index[one["text_id"] == next(iter(copies))][0]
    score = float(one.loc[row, columns[0]])
    one.loc[row, columns[0]] = str(score + 0.03 * (high - low) * (1 if score < (low + high) / 2 else -1))
    for wrong in (shuffled, one):
        wrong.to_csv(tmp_path / "wrong.csv", index=False)
        with pytest.raises(Fb3Error, match="are the same essay"):
            check_submission(member, sample, tmp_path / "wrong.csv", copies)


def test_a_damaged_bundle_is_refused_before_anything_runs(bundle, competition, image, tmp_path):
    broken = copied(bundle, tmp_path / "b")
    (broken / "fb3" / "cli.py").write_text("")
    with pytest.raises(Fb3Error, match=r"cli\.py"):
        rehearse(broken, competition, image, rows=12)


def test_cells_that_the_bundles_decision_gives_are_valid(tmp_path):
    """`fb3 decide` may take another decision than the recipe, which would submit probabilities."""
    wishes = ["task.kind=multilabel", "metric=auc", "data.target_columns=[a]"]
    member = Member("m", tmp_path, load_recipe("tiny", wishes), [])
    (tmp_path / "s.csv").write_text("text_id,a\nx,0\ny,1\n")
    decision = Decision("thresholds", ((0.0, 1.0),), ((0.3,),))
    check_submission(member, tmp_path / "s.csv", tmp_path / "s.csv", {}, decision)
    with pytest.raises(Fb3Error, match="not probabilities above 0 and below 1"):
        check_submission(member, tmp_path / "s.csv", tmp_path / "s.csv", {})


def test_a_header_line_must_be_there_or_not(tmp_path):
    wishes = ["task.kind=classification", "metric=macro_f1", "data.target_columns=[a]", "task.classes=[x, y]"]
    wishes += ["data.files.sample=null", "data.files.header=false"]
    member = Member("m", tmp_path, load_recipe("tiny", wishes), [])
    (tmp_path / "test.csv").write_text("text_id,full_text\n7,p\n8,q\n")
    (tmp_path / "s.csv").write_text("7,x\n8,y\n")
    check_submission(member, tmp_path / "test.csv", tmp_path / "s.csv", {})
    (tmp_path / "s.csv").write_text("text_id,a\n7,x\n8,y\n")
    with pytest.raises(Fb3Error, match="text_id"):
        check_submission(member, tmp_path / "test.csv", tmp_path / "s.csv", {})


def test_fractions_where_the_sample_holds_whole_numbers_are_noted():
    sample = pd.DataFrame({"score": ["3", "3"], "other": ["0.5", "0.5"], "word": ["a", "b"]})
    written = pd.DataFrame({"score": ["2.9", "3.1"], "other": ["0.1", "0.2"], "word": ["b", "b"]})
    (note,) = fractions_for_whole_numbers(sample, written, "sample_submission.csv")
    assert note.startswith("sample_submission.csv holds whole numbers in ['score'], the submission fractions; ")
    assert not fractions_for_whole_numbers(sample, written.assign(score=["3", "4"]), "sample_submission.csv")


def test_equal_essays_may_get_another_label_seldom_but_not_often(tmp_path):
    lines = ["data.target_columns=[label]", "data.id_column=id", "metric=accuracy"]
    recipe = load_recipe("tiny", [*lines, "task={kind: classification, classes: [low, high]}"])
    ids, copies = [str(n) for n in range(20)], {str(n + 10): str(n) for n in range(10)}

    def check(different):
        labels = ["low"] * 10 + ["high" if n < different else "low" for n in range(10)]
        for name in ("sample.csv", "submission.csv"):
            pd.DataFrame({"id": ids, "label": labels}).to_csv(tmp_path / name, index=False)
        member = Member("run", tmp_path, recipe, [])
        check_submission(member, tmp_path / "sample.csv", tmp_path / "submission.csv", copies, None)

    check(3)  # a prediction beside a cut goes one way or the other
    with pytest.raises(Fb3Error, match="are the same essay"):
        check(4)
