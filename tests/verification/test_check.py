"""Each kind of damage is found and named, and what is sound passes."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from fb3.bundles.packing import write_bundle
from fb3.errors import Fb3Error, Stopped
from fb3.recipe import load_recipe
from fb3.runs.scores import scores_of
from fb3.system.files import read_json, sha256, write_json
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import ROOT, TINY, copied


@pytest.fixture
def broken(run, tmp_path):
    """A copy of the run to damage."""
    return copied(run, tmp_path / "tiny")


@pytest.fixture(scope="module")
def with_wheels(run, tmp_path_factory):
    """A bundle that carries a file in the place of a wheel, and its lock."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel, lock = folder / "piece-1.0-py3-none-any.whl", folder / "py312.lock"
    wheel.write_bytes(b"wheel")
    lock.write_text(f"piece==1.0 --hash=sha256:{sha256(wheel)}\n")
    return write_bundle([run], folder / "bundle", wheels=[wheel, lock]).path


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit_json(path, **values):
    write_json({**read_json(path), **values}, path)


def edit_csv(path, row, column, value):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(path, index=False)


def edit_recipe(run, group, **values):
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    settings[group].update(values)
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings))


def kinds(report):
    return [finding.kind for finding in report.findings]


def test_a_sound_run_passes_and_nothing_is_written(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    report = verify(run)
    assert report.passed
    assert (report.kind, set(kinds(report))) == ("run", {"ok"})
    assert report.text().endswith(f"{run}: run, sound")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_sound_bundle_passes(with_wheels, competition):
    report = verify(with_wheels)
    assert report.passed
    assert kinds(report).count("not made") == 1
    assert report.text().endswith("bundle, sound, 1 not made")
    assert set(kinds(verify(with_wheels, competition))) == {"ok"}


DAMAGE = {
    "a flipped byte in the weights": (
        lambda run: flip(run / "fold1" / "model.safetensors"),
        [r"fold1/model\.safetensors: not the file that fold\.json describes; copy the run again, or delete"],
    ),
    "no weights": (
        lambda run: (run / "fold0" / "model.safetensors").unlink(),
        [r"fold0/model\.safetensors: missing"],
    ),
    "an edited prediction": (
        lambda run: edit_csv(run / "oof.csv", 0, "syntax", "3.3"),
        [r"scores\.json: score is .*, oof\.csv gives", r"fold0/fold\.json: score is .*, oof\.csv gives"],
    ),
    "a prediction that is none": (
        lambda run: edit_csv(run / "oof.csv", 3, "syntax", "nan"),
        [r"oof\.csv: 1 cells hold no number, first 'nan' in row 4 .*, column syntax; copy the run again"],
    ),
    "a row less": (
        lambda run: pd.read_csv(run / "oof.csv", dtype=str).iloc[1:].to_csv(run / "oof.csv", index=False),
        [r"oof\.csv and the finished folds \[0, 1\] of folds\.csv hold different ids: 0 only .*, 1 only in .*; "],
    ),
    "an edited score": (
        lambda run: edit_json(run / "scores.json", score=0.4),
        [r"scores\.json: score is 0\.4, oof\.csv gives"],
    ),
    "an edited score of a fold": (
        lambda run: edit_json(run / "fold1" / "fold.json", score=0.4),
        [r"fold1/fold\.json: score is 0\.4, oof\.csv gives"],
    ),
    "another seed": (
        lambda run: edit_json(run / "fold1" / "fold.json", seed=7),
        [r"fold1/fold\.json: seed 7, recipe\.yaml makes it 43"],
    ),
    "no tokenizer": (
        lambda run: (run / "encoder" / "tokenizer.json").unlink(),
        [r"encoder/tokenizer\.json: missing"],
    ),
    "another tokenizer": (
        lambda run: flip(run / "encoder" / "tokenizer.json"),
        [r"encoder/tokenizer\.json: not the file that environment\.json describes"],
    ),
    "another fold for an essay": (
        lambda run: edit_csv(
            run / "folds.csv", 0, "fold", {"0": "1", "1": "0"}[pd.read_csv(run / "folds.csv", dtype=str).fold[0]]
        ),
        [
            "fold0: validated on other essays",
            "fold1: validated on other essays",
            r"oof\.csv and the finished folds .* hold different ids: 1 only .*, 1 only",
            r"folds\.csv: 1 essays are in other folds than the recipe puts them",
        ],
    ),
    "another recipe": (
        lambda run: edit_recipe(run, "folds", count=3),
        [r"folds\.csv: \d+ essays are in other folds than the recipe puts them"],
    ),
    "a recipe that is none": (
        lambda run: (run / "recipe.yaml").write_text("trian: {}"),
        [r"recipe\.yaml: unknown key"],
    ),
    "environment.json of another form": (
        lambda run: (run / "environment.json").write_text("[1]"),
        [r"environment\.json: want a mapping, got list"],
    ),
    "two at once": (
        lambda run: (flip(run / "fold0" / "model.safetensors"), edit_json(run / "scores.json", essays=1)),
        [r"fold0/model\.safetensors: not the file", r"scores\.json: essays is 1, oof\.csv gives 60"],
    ),
}


@pytest.mark.parametrize(("damage", "faults"), DAMAGE.values(), ids=DAMAGE)
def test_damage_to_a_run_is_found_and_named(damage, faults, broken):
    damage(broken)
    report = verify(broken)
    assert len(report.faults) == len(faults), report.text()
    for wanted, fault in zip(faults, report.faults, strict=True):
        assert re.search(wanted, fault), fault
        assert str(broken) in fault or "environment.json" in fault


def test_another_train_csv(run, competition, tmp_path):
    moved = copied(competition, tmp_path / "data")
    edit_csv(moved / "train.csv", 2, "grammar", "1.5")
    by_hash, truths = verify(run, moved).faults
    assert re.search(r"data/train\.csv: not the file that the run was trained on .* --data DIR", by_hash)
    assert re.search(r"oof\.csv: 1 truths differ from .*data/train\.csv, first grammar of", truths)
    pd.read_csv(moved / "train.csv", dtype=str).iloc[1:].to_csv(moved / "train.csv", index=False)
    assert "hold different ids: 1 only in" in "\n".join(verify(run, moved).faults)
    with pytest.raises(Fb3Error, match=r"nowhere/train\.csv: no such file"):
        verify(run, tmp_path / "nowhere")


def test_truths_changed_with_the_scores(broken, competition):
    """The scores recompute, but not from these essays."""
    edit_csv(broken / "oof.csv", 0, "true_syntax", "3.25")
    again = scores_of(broken, load_recipe(broken / "recipe.yaml"))
    write_json(again, broken / "scores.json")
    edit_json(
        broken / "fold0" / "fold.json", score=again["folds"]["0"]["score"], columns=again["folds"]["0"]["columns"]
    )
    (fault,) = verify(broken).faults
    assert "1 truths differ from" in fault
    packed = write_bundle([broken], broken.parent / "bundle").path
    assert verify(packed).passed
    assert "1 truths differ from" in verify(packed, competition).faults[0]


def test_data_that_moved_are_asked_for_and_nothing_is_passed_in_silence(broken, competition, tmp_path):
    edit_json(broken / "environment.json", data=str(tmp_path / "gone"))
    report = verify(broken)
    assert report.passed
    assert re.search(r"not made  train\.csv .*gone\); give --data", report.text())
    assert set(kinds(verify(broken, competition))) == {"ok"}


def test_a_fold_column_decides_over_the_recipe(competition, tmp_path):
    data = copied(competition, tmp_path / "data")
    table = pd.read_csv(data / "train.csv", dtype=str, keep_default_na=False)
    table.assign(fold=[row % 3 for row in range(len(table))]).to_csv(data / "train.csv", index=False)
    run = train(load_recipe("tiny", TINY), data, tmp_path / "tiny", folds=[2]).path
    report = verify(run)
    assert report.passed, report.text()
    assert "folds [0, 1]: not trained" in report.text()
    packed = write_bundle([run], tmp_path / "bundle").path
    assert verify(packed, data).passed
    assert "folds.csv: 3 folds, folds.count=2; right only for a `fold` column" in verify(packed).text()


def test_groups_are_told_at_the_start_and_one_in_two_folds_is_a_fault(competition, tmp_path, capsys):
    data = copied(competition, tmp_path / "data")
    table = pd.read_csv(data / "train.csv", dtype=str, keep_default_na=False)
    table.assign(prompt=[f"p{row % 7}" for row in range(len(table))]).to_csv(data / "train.csv", index=False)
    recipe = load_recipe("tiny", [*TINY, "folds.group_column=prompt"])
    run = train(recipe, data, tmp_path / "tiny", folds=[0]).path
    assert "folds.group_column=prompt: 7 groups in " in capsys.readouterr().err
    assert verify(run).passed
    train(recipe, data, run, folds=[1])
    assert set(kinds(verify(run))) == {"ok"}
    edit_csv(run / "folds.csv", 0, "fold", str(1 - pd.read_csv(run / "folds.csv")["fold"][0]))
    assert any("1 groups of folds.group_column=prompt are in more than one" in fault for fault in verify(run).faults)


def test_another_split_of_folds_that_were_not_trained_is_a_fault_and_one_that_was_is_told(broken):
    edit_recipe(broken, "folds", seed=7)  # as where another version of the splitter made it
    report = verify(broken)
    assert report.passed
    assert "another version of the splitter" in report.text()
    (broken / "fold1" / "fold.json").unlink()
    assert any("in other folds than the recipe puts them" in fault for fault in verify(broken).faults)


def test_unfinished_folds_are_named_and_their_saves_looked_at(competition, tmp_path):
    recipe = load_recipe("tiny", [*TINY, "data.sample=24", "train.batch_size=3"])
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(recipe, competition, out, folds=[0], stop_after="0s")
    report = verify(out)
    assert report.passed, report.text()
    assert "fold0: not trained to its end, saves of steps [1]; `fb3 train` goes on" in report.text()
    assert "ok        fold0/resume/1: whole" in report.text()
    assert "folds [1]: not trained" in report.text()
    flip(out / "fold0" / "resume" / "1" / "state.safetensors")
    (fault,) = verify(out).faults
    assert re.search(r"resume/1/state\.safetensors: damaged; delete .*resume/1", fault)


BUNDLE_DAMAGE = {
    "a flipped byte": (
        lambda bundle: flip(bundle / "runs/tiny/fold1/model.safetensors"),
        [r"runs/tiny/fold1/model\.safetensors: its hash"],
    ),
    "no wheel": (
        lambda bundle: (bundle / "wheels/piece-1.0-py3-none-any.whl").unlink(),
        [r"wheels/piece-1\.0-py3-none-any\.whl: missing"],
    ),
    "a wheel that was never packed": (
        lambda bundle: edit_json(
            bundle / "manifest.json",
            files={k: v for k, v in read_json(bundle / "manifest.json")["files"].items() if not k.endswith(".whl")},
        ),
        [r"piece-1\.0-py3-none-any\.whl: not in manifest\.json", r"py312\.lock: no wheel of \['piece'\]"],
    ),
    "an extra file": (
        lambda bundle: (bundle / "runs/tiny/fold1/notes.txt").write_text("x"),
        [r"runs/tiny/fold1/notes\.txt: not in manifest\.json; delete it"],
    ),
    "no tokenizer": (
        lambda bundle: (bundle / "runs/tiny/encoder/tokenizer.json").unlink(),
        [r"encoder/tokenizer\.json: missing"],
    ),
    "folds.csv of another size": (
        lambda bundle: (bundle / "runs/tiny/folds.csv").write_text("text_id,fold\nA,0\nB,1\n"),
        [
            r"folds\.csv: 21 bytes, packed were",
            "fold0: validated on other",
            "fold1: validated on other",
            "oof.csv and the finished folds .* hold different ids",
        ],
    ),
}


@pytest.mark.parametrize(("damage", "faults"), BUNDLE_DAMAGE.values(), ids=BUNDLE_DAMAGE)
def test_damage_to_a_bundle_is_found_and_named(damage, faults, with_wheels, tmp_path):
    broken = copied(with_wheels, tmp_path / "bundle")
    damage(broken)
    report = verify(broken)
    assert len(report.faults) == len(faults), report.text()
    for wanted, fault in zip(faults, report.faults, strict=True):
        assert re.search(wanted, fault), fault


def test_what_the_user_and_python_write_into_a_bundle_is_allowed(bundle, tmp_path):
    edited = copied(bundle, tmp_path / "bundle")
    (edited / "dataset-metadata.json").write_text("{}")
    (edited / "fb3" / "__pycache__").mkdir()
    (edited / "fb3" / "__pycache__" / "essays.pyc").write_bytes(b"x")
    assert verify(edited).passed


def test_predictions_made_again(run, bundle, broken, competition):
    assert "fold1: 2 essays predicted again" in verify(run, essays=2).text()
    assert verify(bundle, competition, essays=2).passed
    edit_recipe(broken, "model", pooling={"kind": "max"})
    assert verify(broken).passed  # no hash sees it
    assert re.search(r"fold0: the files do not give the predictions in oof\.csv", verify(broken, essays=2).faults[0])


def test_the_command(broken, tmp_path):
    edit_json(broken / "scores.json", score=0.4)
    command = [sys.executable, "-m", "fb3", "verify", str(broken)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT     " in done.stdout
    assert done.stdout.splitlines()[-1] == f"{broken}: run, 1 faults"
    with pytest.raises(
        Fb3Error, match=r"neither a run folder \(no recipe\.yaml\) nor a bundle \(no manifest\.json\) nor a "
    ):
        verify(tmp_path)


def test_hashes_and_scores_need_no_torch(run, bundle):
    code = (
        "import sys; from fb3.verification.check import verify; "
        "passed = [verify(path).passed for path in sys.argv[1:]]; "
        "sys.exit(not all(passed) or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, run, bundle], cwd=ROOT).returncode == 0


def test_a_metric_of_ones_own_that_is_not_here_is_no_fault(run, tmp_path):
    mine = copied(run, tmp_path / "run")
    recipe = yaml.safe_load((mine / "recipe.yaml").read_text())
    recipe["metric"] = {"file": str(tmp_path / "gone.py"), "function": "f"}
    (mine / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    report = verify(mine)
    assert report.passed, report.text()
    assert f"not made  scores.json, fold.json: they need the metric's own file, {tmp_path}/gone.py" in report.text()
