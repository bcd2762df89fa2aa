import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from build_dataset import main
from fb3.bundles.bundle import read_bundle, verify_bundle
from fb3.bundles.images import find_image
from fb3.bundles.kaggle_names import check_file_names
from fb3.bundles.packing import write_bundle
from fb3.bundles.wheels import fetch_wheels
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.recipe.data import TextSettings
from fb3.rehearsal.rehearsal import rehearse
from fb3.runs.run_folder import Member, in_turn
from fb3.submission.background import FoldChecks
from fb3.submission.inference import infer
from fb3.system.files import atomic_file, sha256, write_text
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import ROOT, TINY, copied


def test_a_bundle_holds_source_runs_and_a_manifest_of_every_file(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = {p.relative_to(bundle).as_posix(): p for p in bundle.rglob("*") if p.is_file()}
    assert manifest["files"].keys() == files.keys() - {"manifest.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"size": files[name].stat().st_size, "sha256": sha256(files[name])}
    assert {
        "fb3/__init__.py",
        "fb3/recipe/builtin/tiny.yaml",
        "runs/tiny/fold1/fold.json",
        "runs/tiny/oof.csv",
    } <= files.keys()
    assert not any("pycache" in name or name.endswith((".pt", ".bin", ".pkl", ".pyc")) for name in files)
    assert not any(name.split("/")[-1] in {"environment.json", "log.jsonl"} for name in files)
    assert {p.name for p in bundle.iterdir()} == {"fb3", "runs", "manifest.json", "dataset-metadata.json"}


def test_nothing_in_a_bundle_names_a_place_of_this_machine(bundle, run):
    for path in bundle.rglob("*"):
        if path.is_file() and "runs" in path.parts:
            assert str(run.parent).encode() not in path.read_bytes(), path


def test_half_precision_halves_the_size_and_keeps_the_predictions(run, bundle, competition, tmp_path):
    half = write_bundle([run], tmp_path / "half", weights="fp16").path
    weights = "runs/tiny/fold0/model.safetensors"
    assert (half / weights).stat().st_size < 0.55 * (bundle / weights).stat().st_size
    one = infer(bundle, competition, tmp_path / "a.csv")
    two = infer(half, competition, tmp_path / "b.csv")
    np.testing.assert_allclose(one.iloc[:, 1:], two.iloc[:, 1:], atol=1e-3)


def test_several_runs_get_equal_weights_and_a_run_may_lack_folds(run, bundle, competition, tmp_path):
    other = train(
        load_recipe("tiny", [*TINY, "train.seed=5", "data.truncation=tail"]), competition, tmp_path / "tiny", folds=[1]
    )
    packed = write_bundle([run, other.path], tmp_path / "both")
    left = ["folds [0] of 2 are not trained to their end"]
    assert packed.manifest["runs"] == [
        {"name": "tiny", "folds": [0, 1]},
        {"name": "tiny-2", "folds": [1], "caveats": left},
    ]
    alone = write_bundle([other.path], tmp_path / "alone").path
    expected = sum(infer(b, competition, tmp_path / "s.csv").iloc[:, 1:] for b in (bundle, alone)) / 2
    np.testing.assert_allclose(infer(packed.path, competition, tmp_path / "s.csv").iloc[:, 1:], expected, atol=1e-5)


def test_an_unfinished_fold_is_left_out_loudly(run, tmp_path, capsys):
    stopped = copied(run, tmp_path / "stopped")
    info = json.loads((stopped / "fold1" / "fold.json").read_text())
    (stopped / "fold1" / "fold.json").write_text(json.dumps({k: v for k, v in info.items() if k != "finished"}))
    packed = write_bundle([stopped], tmp_path / "out")
    left = "folds [1] of 2 are not trained to their end"
    assert packed.manifest["runs"] == [{"name": "stopped", "folds": [0], "caveats": [left]}]
    said = capsys.readouterr().err
    assert "left out ['fold1']" in said
    assert f"WARNING: {stopped}: its score is no CV: {left}" in said
    (stopped / "fold1" / "fold.json").write_text("{}")
    with pytest.raises(Fb3Error, match=r"fold1/fold\.json: not a fold's description"):
        write_bundle([stopped], tmp_path / "out")


def test_a_source_that_cannot_be_read_is_named_and_not_the_bundle(run, tmp_path):
    gone = tmp_path / "wheels" / "gone.whl"
    with pytest.raises(Fb3Error) as error:
        write_bundle([run], tmp_path / "out", wheels=[gone])
    assert str(error.value) == f"{gone}: cannot be read (No such file or directory)"
    looped = copied(run, tmp_path / "looped")
    (looped / "encoder" / "more.txt").mkdir()
    (looped / "encoder" / "more.txt" / "self.txt").symlink_to(looped / "encoder" / "gone.txt")
    with pytest.raises(
        Fb3Error, match=rf"^{looped}/encoder/more.txt/self.txt: cannot be read \(.*No such file"
    ) as error:
        write_bundle([looped], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(Fb3Error, match=rf"^{tmp_path}/file/out: cannot be written \(Not a directory\)$"):
        write_bundle([run], tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_written_and_what_is_read_for_it_are_told_apart(tmp_path):
    source, target = tmp_path / "source.csv", tmp_path / "target.csv"
    with pytest.raises(Fb3Error) as error, atomic_file(target) as aside:
        shutil.copyfile(source, aside)
    assert str(error.value) == f"{source}: cannot be read (No such file or directory)"
    with pytest.raises(Fb3Error) as error, atomic_file(target) as aside:
        (aside / "in no folder").write_text("")
    assert str(error.value) == f"{target}: cannot be written (No such file or directory)"
    (tmp_path / "file").write_text("")
    with pytest.raises(Fb3Error, match=rf"^{tmp_path}/file/x.csv: cannot be written \("):
        write_text("", tmp_path / "file" / "x.csv")


def test_runs_of_one_name_are_numbered(run, tmp_path):
    names = ("a/run", "b/run-2", "c/run", "d/run")
    packed = write_bundle([copied(run, tmp_path / name) for name in names], tmp_path / "out")
    assert [member["name"] for member in packed.manifest["runs"]] == ["run", "run-2", "run-3", "run-4"]
    again = write_bundle([tmp_path / name for name in ("b/run-2", "a/run", "c/run")], tmp_path / "out")
    assert [member["name"] for member in again.manifest["runs"]] == ["run-2", "run", "run-3"]


def test_what_cannot_be_packed_is_refused(run, tmp_path, competition):
    with pytest.raises(Fb3Error, match="no run folder"):
        write_bundle([tmp_path], tmp_path / "out")
    empty = copied(run, tmp_path / "empty")
    for fold in (0, 1):
        (empty / f"fold{fold}" / "fold.json").unlink()
    with pytest.raises(Fb3Error, match="no fold in it was trained to its end"):
        write_bundle([empty], tmp_path / "out")
    swapped = copied(run, tmp_path / "swapped")
    (swapped / "fold0" / "model.safetensors").write_bytes((run / "fold1" / "model.safetensors").read_bytes())
    with pytest.raises(Fb3Error, match=r"fold0/model\.safetensors: .*not the file that fold\.json describes"):
        write_bundle([swapped], tmp_path / "out")
    fewer = load_recipe("tiny", [*TINY, "data.target_columns=[syntax]", "data.sample=20"])
    other = train(fewer, competition, tmp_path / "fewer", folds=[0])
    with pytest.raises(Fb3Error, match=r"data\.target_columns"):
        write_bundle([run, other.path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_runs_that_read_the_same_columns_otherwise_go_together_and_others_do_not(tiny, run, competition, tmp_path):
    """Each run's texts are prepared and tokenised by its own recipe."""
    lines = tiny.data.model_copy(update={"max_length": 20, "text": TextSettings(newlines=True)})
    other = train(tiny.model_copy(update={"data": lines}), competition, tmp_path / "lines", folds=[0]).path
    single, alone = (write_bundle([path], tmp_path / f"{path.name}-alone").path for path in (run, other))
    both = write_bundle([run, other], tmp_path / "both").path
    one, two, joined = (infer(path, competition, tmp_path / "s.csv", strict=True) for path in (single, alone, both))
    columns = list(tiny.data.target_columns)
    assert (one[columns] - two[columns]).abs().max().max() > 1e-4
    np.testing.assert_allclose(joined[columns], (one[columns] + two[columns]) / 2, atol=1e-5)
    (tmp_path / "titled").mkdir()
    table = pd.read_csv(competition / "train.csv").assign(title="On essays")
    table.to_csv(tmp_path / "titled" / "train.csv", index=False)
    titles = tiny.data.model_copy(update={"text": TextSettings(template="{title}: {full_text}")})
    third = train(tiny.model_copy(update={"data": titles}), tmp_path / "titled", tmp_path / "titles", folds=[0]).path
    with pytest.raises(Fb3Error, match=r"texts' columns.*title.*pack them separately"):
        write_bundle([run, third], tmp_path / "none")


def test_an_older_bundle_is_replaced_and_anything_else_is_not(run, tmp_path):
    out = tmp_path / "out"
    write_bundle([run], out)
    (out / "left-over").write_text("")
    write_bundle([run], out)
    assert not (out / "left-over").exists()
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"name": "my browser extension"}')
    with pytest.raises(Fb3Error, match="no bundle"):
        write_bundle([run], tmp_path / "extension")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    with pytest.raises(Fb3Error, match="no bundle"):
        write_bundle([run], tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").is_file()


def test_run_folders_whose_names_kaggle_refuses(run, tmp_path, capsys):
    names = ["exp@2e-5", "exp&2e-5", "модель"]
    packed = write_bundle([copied(run, tmp_path / name) for name in names], tmp_path / "bundle")
    assert [each["name"] for each in packed.manifest["runs"]] == ["exp-2e-5", "exp-2e-5-2", "run"]
    said = capsys.readouterr().err
    assert "exp@2e-5: is 'exp-2e-5' in the bundle; Kaggle refuses the name that it has" in said
    check_file_names(packed.manifest["files"])
    assert verify_bundle(packed.path)


def test_the_script_packs_wheels_and_says_what_is_next(run, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    command = [sys.executable, str(ROOT / "build_dataset.py"), str(run), "--out", str(tmp_path / "out")]

    def script(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True)

    refused = script("--wheels", str(wheels))
    assert refused.returncode == 1
    assert "no wheel of ['iterative-stratification'] with the hash" in refused.stderr
    try:
        fetch_wheels(ROOT / "wheels" / "py312.lock", wheels, find_image("py312"))
    except Fb3Error as error:
        pytest.skip(str(error))
    named = ("--id", "me/a-good-slug", "--title", "My bundle", "--weights", "fp16", "--dry-run")
    done = script("--wheels", str(wheels), *named)
    assert done.returncode == 0, done.stderr
    assert "next: fb3 rehearse" in done.stdout
    assert "nothing was sent" in done.stderr
    packed = verify_bundle(tmp_path / "out")
    names = {"iterative_stratification-0.1.9-py3-none-any.whl", "py312.lock", "py313.lock"}
    assert {f"wheels/{name}" for name in names} <= set(packed.manifest["files"])
    assert "largest_difference" in packed.manifest["parity"]
    assert json.loads((tmp_path / "out" / "dataset-metadata.json").read_text())["title"] == "My bundle"
    assert pd.read_csv(tmp_path / "out" / "runs" / "tiny" / "folds.csv").shape == (60, 2)
    bare = script("--no-wheels", "--no-parity")
    assert bare.returncode == 0, bare.stderr
    assert verify_bundle(tmp_path / "out").manifest["parity"] == {"skipped": "not asked for"}


def test_source_alone_is_packed_checked_and_refused_where_a_run_is_wanted(run, competition, tmp_path):
    """By the script and the commands, as users call them."""
    out = tmp_path / "source"

    def script(*arguments):
        command = [sys.executable, str(ROOT / "build_dataset.py"), *arguments, "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True)

    done = script("--source-only", "--no-wheels", "--id", "me/fb3-source", "--title", "fb3 source", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "attach it and the competition to notebooks/train.ipynb" in done.stdout
    assert "rehearse" not in done.stdout
    assert "nothing was sent" in done.stderr
    assert {path.name for path in out.iterdir()} == {"fb3", "manifest.json", "dataset-metadata.json"}
    assert json.loads((out / "dataset-metadata.json").read_text())["title"] == "fb3 source"
    assert verify_bundle(out).manifest["runs"] == []
    report = verify(out)
    assert report.passed
    assert "no trained run" in report.text()
    for what, third in ((infer, tmp_path / "s.csv"), (rehearse, find_image("py312"))):
        with pytest.raises(Fb3Error, match=r"source: holds fb3's source and wheels and no trained run: .*train\.ipynb"):
            what(out, competition, third)
    assert not (tmp_path / "s.csv").exists()
    (out / "fb3" / "data" / "folds.py").write_text("")
    assert not verify(out).passed
    assert "folds.py: 0 bytes, packed were" in verify(out).text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--source-only"], "--source-only packs no run; leave out RUN"),
        (["--source-only", "--int8", "--data", "x"], "--source-only packs no run; leave out --int8, --data"),
        ([], "no run folder to pack; give one, or --source-only"),
    ],
)
def test_runs_and_source_alone_exclude_each_other(run, tmp_path, arguments, words, monkeypatch):
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", *given, "--out", str(tmp_path / "out")])
    with pytest.raises(Fb3Error, match=f"^{words}$"):
        main()
    for runs, source_only in (([run], True), ([], False)):
        with pytest.raises(Fb3Error, match="either the run folders to pack, or source_only"):
            write_bundle(runs, tmp_path / "out", source_only=source_only)
    assert not (tmp_path / "out").exists()


def test_folds_are_checked_ahead_of_their_turns_and_each_fault_is_its_own(bundle, tmp_path):
    packed = read_bundle(copied(bundle, tmp_path / "bundle"))
    (member,) = packed.members()
    folders = [member.folds[k] for _, k in in_turn([member])]
    assert folders == member.folds
    assert len(folders) == 2
    weights = folders[1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    checks = FoldChecks(packed, folders)
    checks.wait(folders[0])
    ahead = checks._begun[folders[1]]  # nobody has asked for it yet
    assert ahead.exception(60) is not None
    for _ in range(2):
        with pytest.raises(Fb3Error, match="its hash is not the packed file's"):
            checks.wait(folders[1])


def test_a_fold_is_checked_whatever_came_before_it(bundle):
    packed = read_bundle(bundle)
    (member,) = packed.members()
    checks = FoldChecks(packed, [])
    checks.wait(member.folds[1])
    assert checks._begun.keys() == {member.folds[1]}


def test_runs_take_turns():
    one, two = (
        Member(name, Path(name), None, [Path(name, str(k)) for k in range(n)]) for name, n in (("a", 3), ("b", 1))
    )
    assert [(member.name, k) for member, k in in_turn([one, two])] == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]
    assert in_turn([]) == []


def test_where_no_thread_is_to_be_had_folds_are_checked_all_the_same(bundle, tmp_path, monkeypatch):
    def refuses(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    packed = read_bundle(copied(bundle, tmp_path / "bundle"))
    (member,) = packed.members()
    with (member.folds[1] / "model.safetensors").open("r+b") as file:
        file.write(b"other")
    checks = FoldChecks(packed, member.folds)
    checks.wait(member.folds[0])
    with pytest.raises(Fb3Error, match="its hash is not the packed file's"):
        checks.wait(member.folds[1])
