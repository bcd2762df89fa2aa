"""Whatever stops a training, it goes on from its last save and ends as it would have ended, bit for bit."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fb3.cli import main
from fb3.errors import Fb3Error, Stopped
from fb3.models import surgery
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import read_weights
from fb3.runs.save_folder import hashed_json, list_saves
from fb3.system.files import read_json
from fb3.system.folder_lock import lock_folder
from fb3.training import saves as saving
from fb3.training.loop import Loop
from fb3.training.run import train
from tests.conftest import ROOT, TINY, copied

SMALL = [*TINY, "data.sample=24", "train.epochs=2", "train.batch_size=3", "train.log_every_steps=3"]
SAVED = [*SMALL, "train.save_every_steps=3"]  # a fold has 8 steps
KEPT = ["tricks=[{kind: fgm}, {kind: ema, decay: 0.7, teach: 0.4}]", "model.dropout=0.1"]
TIMES = {"time", "elapsed", "remaining"}


class Broken(Exception):
    """Something that happened to a training."""


def ended(run, fold=0):
    """All that a fold came to: files as they stand, and what the log says of its steps and evaluations."""
    names = [f"fold{fold}/model.safetensors", f"fold{fold}/fold.json", "oof.csv", "scores.json", "recipe.yaml"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["event"] in {"fold", "step", "evaluation"} and line["fold"] == fold]
    return {
        **{name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names},
        "log": [{key: value for key, value in line.items() if key not in TIMES} for line in told],
    }


def breaking_at(monkeypatch, number, error=Broken):
    """The step after `number` steps breaks."""
    plain = Loop.optimizer_step

    def broken(self, step, *arguments):
        if step.number == number:
            raise error
        return plain(self, step, *arguments)

    monkeypatch.setattr(Loop, "optimizer_step", broken)


def broken_run(recipe, competition, out, monkeypatch, number=5):
    """A run whose first fold broke after `number` steps."""
    with monkeypatch.context() as patched:
        breaking_at(patched, number)
        with pytest.raises(Broken):
            train(recipe, competition, out, folds=[0])
    return out


def test_a_fold_that_goes_on_tells_each_step_once(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", [*SMALL, "train.save_every_steps=5"])
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch, 6)
    told = []

    @contextmanager
    def progress(title, total, shown, done):
        told.append(done)
        yield lambda amount=1, note="": told.append(amount)

    monkeypatch.setattr("fb3.training.loop.progress", progress)
    train(recipe, competition, out, folds=[0])
    assert told == [5, 1, 1, 1]  # 5 steps were saved


PIECES = {
    "ema, fgm, dropout": KEPT,
    "swa, radam": ["tricks=[{kind: swa, start: 0.2, every_steps: 2}]", "optimizer.kind=radam"],
    "lookahead, pull, adafactor": [
        "tricks=[{kind: lookahead, steps: 4}, {kind: pull_to_start, strength: 0.01}]",
        "optimizer.weight_decay=0",
        "optimizer.kind=adafactor",
    ],
    "soup": ["train.soup={kind: greedy, top: 3}", "train.evaluate_every_steps=2", "optimizer.kind=nadam"],
    "augmentation, awp": [
        "data.augment={mask: 0.2, mix: 0.3}",
        "tricks=[{kind: awp, from_epoch: 1, from_score: 9.0}]",
    ],
    "uncertainty, noise": ["task.weighting=uncertainty", "tricks=[{kind: noise, scale: 0.1}]"],
    "unlabelled essays": ["task.uda={file: test.csv, augment: {mask: 0.3}, batch_size: 2}"],
    "labels, weights, sampling": [
        "task={kind: classification, class_weights: {kind: power}}",
        "data.target_columns=[cohesion]",
        "metric=log_loss",
        "train.sampling=sqrt",
        "data.weight_column=syntax",
    ],
    "accumulation, mixout": [
        "train.batch_size=1",
        "train.accumulation=3",
        "model.mixout=0.2",
        "optimizer.bias_correction=false",
        "schedule.warmup_share=0.5",
    ],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_a_resumed_fold_ends_bit_for_bit_as_the_whole_one(pieces, competition, tmp_path, monkeypatch):
    whole = train(load_recipe("tiny", [*SAVED, *pieces]), competition, tmp_path / "whole", folds=[0])
    out = broken_run(load_recipe("tiny", [*SAVED, *pieces]), competition, tmp_path / "run", monkeypatch)
    assert [path.name for path in list_saves(out / "fold0" / "resume")] == ["3"]
    assert (out / "fold0" / "fold.json").is_file()  # of the first epoch, after the save
    resumed = train(load_recipe("tiny", [*SAVED, *pieces]), competition, out, folds=[0])
    assert ended(resumed.path) == ended(whole.path)
    assert not (out / "fold0" / "resume").exists()


@pytest.mark.parametrize("kind", ["ranger", "lamb", "madgrad"])
def test_optimizers_of_libraries_go_on(kind, competition, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_optimizer")
    recipe = load_recipe("tiny", [*SAVED, f"optimizer.kind={kind}"])
    whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch, 7)
    assert ended(train(recipe, competition, out, folds=[0]).path) == ended(whole.path)


def test_saving_changes_nothing(competition, tmp_path):
    """And a run that broke once more goes on once more."""
    often = train(load_recipe("tiny", [*SAVED, *KEPT]), competition, tmp_path / "often", folds=[0])
    never = train(load_recipe("tiny", [*SMALL, *KEPT]), competition, tmp_path / "never", folds=[0])
    one, two = ended(often.path), ended(never.path)
    assert one.pop("recipe.yaml") != two.pop("recipe.yaml")
    assert one == two


def test_breaking_twice_at_a_save_and_in_the_last_step(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", [*SMALL, *KEPT, "train.save_every_steps=4"])  # saved where an evaluation follows
    whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch, 4)
    broken_run(recipe, competition, out, monkeypatch, 7)
    assert ended(train(recipe, competition, out, folds=[0]).path) == ended(whole.path)


# --- killed ---

KILLED = """
import os, signal, sys
from pathlib import Path
from fb3.cli import main
from fb3.training import best_checkpoint, saves as resume

def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

point = sys.argv.pop(1)
if point == "after the save":
    plain = resume.Saves.save
    resume.Saves.save = lambda self, loop: (plain(self, loop), loop.step.number == 6 and die())
elif point == "before the rename":
    plain = resume.write_text
    resume.write_text = lambda text, path: die() if path.parent.name.startswith(".6.") else plain(text, path)
elif point == "in an evaluation":
    plain = best_checkpoint.predict
    seen = []
    best_checkpoint.predict = lambda *a, **k: (seen.append(1), len(seen) == 2 and die(), plain(*a, **k))[2]
elif point == "in the first checkpoint":
    best_checkpoint.save_fold = lambda folder, *a: ((folder / ".model.safetensors.1.part").write_text(""), die())
main()
"""


@pytest.fixture(scope="module")
def whole(competition, tmp_path_factory):
    recipe = load_recipe("tiny", [*SAVED, *KEPT])
    return train(recipe, competition, tmp_path_factory.mktemp("whole") / "run", folds=[0]).path


@pytest.mark.parametrize(
    ("point", "saves"),
    [
        ("after the save", ["6", "3"]),
        ("before the rename", ["3"]),
        ("in an evaluation", ["6", "3"]),
        ("in the first checkpoint", ["3"]),
    ],
)
def test_a_killed_process_goes_on(point, saves, whole, competition, tmp_path, capsys):
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, point, "train", "tiny", *SAVED, *KEPT]
    done = subprocess.run([*command, "--data", competition, "--out", out, "--folds", "0"], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in list_saves(out / "fold0" / "resume")] == saves
    resumed = train(load_recipe("tiny", [*SAVED, *KEPT]), competition, out, folds=[0])  # its lock does not count
    assert f"goes on after step {saves[0]} of 8" in capsys.readouterr().err
    assert ended(resumed.path) == ended(whole)
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]


def test_a_save_holds_no_more_than_it_must(competition, tmp_path, monkeypatch):
    out = broken_run(load_recipe("tiny", SAVED), competition, tmp_path / "run", monkeypatch, 7)
    six = out / "fold0" / "resume" / "6"
    assert {path.name for path in six.iterdir()} == {
        "state.json",
        "state.safetensors",
        "model.safetensors",
        "fold.json",
    }
    weights, state = six / "model.safetensors", six / "state.safetensors"
    assert weights.samefile(out / "fold0" / "model.safetensors")  # no second copy
    assert state.stat().st_size < 3.2 * weights.stat().st_size  # weights, two moments
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "save"] == [3, 6]


# --- what is not gone on from ---


def test_a_torn_save_is_not_used_but_the_one_before(whole, competition, tmp_path, monkeypatch, capsys):
    recipe = load_recipe("tiny", [*SAVED, *KEPT])
    saved = broken_run(recipe, competition, tmp_path / "saved", monkeypatch, 7)

    def torn(place, name, change):
        out = copied(saved, tmp_path / str(place))
        path = out / "fold0" / "resume" / name
        os.truncate(path, path.stat().st_size // 2) if change is None else path.write_bytes(change(path.read_bytes()))
        resumed = train(recipe, competition, out, folds=[0]).path
        return resumed, capsys.readouterr().err

    def flipped(content):
        return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]

    damage = [
        ("6/state.safetensors", None),
        ("6/state.safetensors", flipped),
        ("6/state.json", None),
        ("6/state.json", lambda content: content.replace(b'"number": 6', b'"number": 7')),
        ("6/model.safetensors", flipped),
    ]
    for place, (name, change) in enumerate(damage):
        resumed, said = torn(place, name, change)
        assert "this save is not used" in said
        assert "goes on after step 3" in said
        assert ended(resumed) == ended(whole)


def test_without_a_whole_save_the_fold_starts_over(whole, competition, tmp_path, monkeypatch, capsys):
    recipe = load_recipe("tiny", [*SAVED, *KEPT])
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch)
    (out / "fold0" / "resume" / "3" / "state.json").write_text("{}")
    resumed = train(recipe, competition, out, folds=[0])
    said = capsys.readouterr().err
    assert "state.json: " in said
    assert "this save is not used" in said
    assert ended(resumed.path)["oof.csv"] == ended(whole)["oof.csv"]


def test_resume_with_nothing_saved_says_so_and_with_all_trained_is_done(run, tiny, competition, tmp_path, capsys):
    train(load_recipe("tiny", [*TINY, "data.sample=20"]), competition, tmp_path / "run", folds=[0], resume=True)
    assert "nothing is saved there; starts afresh" in capsys.readouterr().err
    before = (run / "log.jsonl").read_bytes()
    assert train(tiny, competition, run, resume=True).folds == [0, 1]
    assert (run / "log.jsonl").read_bytes() == before
    with pytest.raises(Fb3Error, match=r"folds \[0, 1\] are trained already; choose another --out"):
        train(tiny, competition, run)


def test_another_recipe_or_other_data_is_refused(competition, tmp_path, monkeypatch):
    out = broken_run(load_recipe("tiny", SAVED), competition, tmp_path / "run", monkeypatch)
    with pytest.raises(Fb3Error, match=r"another recipe \(optimizer\.clip: 1000\.0 there, 1\.0 here\)"):
        train(load_recipe("tiny", [*SAVED, "optimizer.clip=1.0"]), competition, out)
    moved = copied(competition, tmp_path / "data")
    (moved / "train.csv").write_text((competition / "train.csv").read_text().replace("the", "teh"))
    with pytest.raises(Fb3Error, match=r"another train\.csv"):
        train(load_recipe("tiny", SAVED), moved, out)
    # A save that was carried into a run folder where it does not belong.
    other = broken_run(load_recipe("tiny", [*SAVED, "optimizer.clip=1.0"]), competition, tmp_path / "o", monkeypatch, 1)
    copied(out / "fold0" / "resume", other / "fold0" / "resume")
    with pytest.raises(
        Fb3Error,
        match=r"saved with another recipe \(optimizer\.clip: 1000\.0 there, 1\.0 here\); give the same, or delete",
    ):
        train(load_recipe("tiny", [*SAVED, "optimizer.clip=1.0"]), competition, other)
    numbers = (out / "folds.csv").read_text().splitlines()
    swapped = [line[:-1] + {"0": "1", "1": "0"}[line[-1]] for line in numbers[1:]]
    (out / "folds.csv").write_text("\n".join([numbers[0], *swapped]) + "\n")
    with pytest.raises(Fb3Error, match=r"saved with another split into folds"):
        train(load_recipe("tiny", SAVED), competition, out)


def test_other_processes_are_refused_and_other_versions_told(competition, tmp_path, monkeypatch, capsys):
    recipe = load_recipe("tiny", SAVED)
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch)
    path = out / "fold0" / "resume" / "3" / "state.json"
    content = read_json(path)["content"]
    content["made_of"]["versions"]["numpy"] = "1.0"
    path.write_text(hashed_json(content))
    with monkeypatch.context() as patched:
        breaking_at(patched, 3)
        with pytest.raises(Broken):
            train(recipe, competition, out)
    assert "numpy 1.0, now" in capsys.readouterr().err
    content["made_of"]["processes"] = 2
    path.write_text(hashed_json(content))
    with pytest.raises(Fb3Error, match="saved by 2 processes, here are 1; launch as many, or delete"):
        train(recipe, competition, out)


def test_what_an_earlier_version_did_not_freeze_is_left_out(competition, tmp_path, monkeypatch):
    """It went on with the training of DeBERTa's relative positions where the embeddings are frozen."""
    recipe = load_recipe("tiny", [*SAVED, "model.freeze_embeddings=true", "optimizer.layer_decay=0.5"])
    name, freeze = "encoder.rel_embeddings.weight", surgery._freeze
    with monkeypatch.context() as earlier:
        thaw = lambda encoder, _: (freeze(encoder, _), encoder.get_parameter(name).requires_grad_())  # noqa: E731
        earlier.setattr(surgery, "_freeze", thaw)
        out = broken_run(recipe, competition, tmp_path / "run", monkeypatch)
    then = read_weights(out / "fold0/resume/3/state.safetensors")
    assert f"shared/optimizer/parameters/encoder.{name}/exp_avg" in then
    train(recipe, competition, out, folds=[0])
    assert torch.equal(
        read_weights(out / "fold0/model.safetensors")[f"encoder.{name}"], then[f"shared/weights/encoder.{name}"]
    )
    train(recipe, competition, tmp_path / "whole", folds=[0])
    rates = [[line.get("rate") for line in ended(path)["log"]] for path in (out, tmp_path / "whole")]
    assert rates[0] == rates[1]


def test_lines_of_other_folds_stay_in_the_log(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", SAVED)
    whole = train(recipe, competition, tmp_path / "whole")
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch, 6)
    train(recipe, competition, out, folds=[1])
    with (out / "log.jsonl").open("a") as file:
        file.write('{"event": "st')  # killed in the middle of a line
    resumed = train(recipe, competition, out)
    for fold in (0, 1):
        assert ended(resumed.path, fold) == ended(whole.path, fold)


# --- stopped ---


def test_stop_after_saves_and_leaves_with_a_status_of_its_own(whole, competition, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    command = ["fb3", "train", "tiny", *SAVED, *KEPT, "--data", str(competition), "--out", str(out), "--folds", "0"]
    for expected in (1, 2):  # no time at all is a step each time
        monkeypatch.setattr(sys, "argv", [*command, "--stop-after", "0s"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 75
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"the time is up: fold 0 is saved after step {expected} of 8 in")
        assert said.endswith("the same command goes on")
    resumed = train(load_recipe("tiny", [*SAVED, *KEPT]), competition, out, folds=[0], stop_after="9h")
    assert ended(resumed.path) == ended(whole)
    with pytest.raises(Fb3Error, match="no duration"):
        train(load_recipe("tiny", SAVED), competition, tmp_path / "x", stop_after="soon")


def test_between_two_folds(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", [*TINY, "data.sample=20"])
    monkeypatch.setattr("fb3.training.saves.stop_reason", lambda session: "SIGTERM")
    with pytest.raises(Stopped, match=r"SIGTERM: folds \[0\] are trained, \[1\] are left; the same command goes on"):
        train(recipe, competition, tmp_path / "run")
    monkeypatch.undo()
    assert train(recipe, competition, tmp_path / "run").folds == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_stop(number, whole, competition, tmp_path, monkeypatch):
    plain, before = Loop.optimizer_step, signal.getsignal(number)

    def interrupted(self, step, *arguments):
        if step.number == 4:
            os.kill(os.getpid(), number)
        return plain(self, step, *arguments)

    recipe = load_recipe("tiny", [*SAVED, *KEPT])
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "optimizer_step", interrupted)
        with pytest.raises(Stopped, match=f"{number.name}: fold 0 is saved after step 5"):
            train(recipe, competition, tmp_path / "run", folds=[0])
    assert signal.getsignal(number) == before
    assert ended(train(recipe, competition, tmp_path / "run", folds=[0]).path) == ended(whole)


@pytest.mark.parametrize(("times", "watch"), [(2, None), (1, lambda evaluation: None)])
def test_a_second_ctrl_c_stops_at_once_and_a_watched_run_at_the_first(times, watch, competition, tmp_path, monkeypatch):
    plain = Loop.backward

    def interrupted(self, *arguments, **more):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *arguments, **more)

    monkeypatch.setattr(Loop, "backward", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(load_recipe("tiny", SAVED), competition, tmp_path / "run", on_evaluation=watch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run" / "fold0" / "resume").exists()


def test_training_outside_the_main_thread(competition, tmp_path):
    found = []
    recipe = load_recipe("tiny", [*TINY, "data.sample=20"])
    thread = threading.Thread(target=lambda: found.append(train(recipe, competition, tmp_path / "run", folds=[0])))
    thread.start()
    thread.join()
    assert found[0].folds == [0]


def test_a_second_process_is_refused(competition, tmp_path):
    out = tmp_path / "run"
    recipe = load_recipe("tiny", [*TINY, "data.sample=20"])
    with (
        lock_folder(out, "fb3 train"),
        pytest.raises(Fb3Error, match=rf"another fb3 train .*\(process {os.getpid()} on "),
    ):
        train(recipe, competition, out)
    assert train(recipe, competition, out, folds=[0]).folds == [0]


# --- full disks ---

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from fb3.cli import main
main()
"""


def test_a_full_disk_names_the_bytes_and_leaves_the_last_save(whole, competition, tmp_path, monkeypatch):
    """A limit on the size of files stands in for the disk: writing fails at the same place."""
    recipe = load_recipe("tiny", [*SAVED, *KEPT])
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch)
    size = (whole / "fold0" / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", LIMITED, str(2 * size), "train", "tiny", *SAVED, *KEPT, "--data", competition]
    done = subprocess.run([*command, "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: fold 0: no save after step 6: it needs ")
    assert "the save of step 3 is whole. Make room, and the same command goes on" in said
    assert [path.name for path in (out / "fold0" / "resume").iterdir()] == ["3"]
    assert ended(train(recipe, competition, out, folds=[0]).path) == ended(whole)


def test_no_space_is_seen_before_writing(competition, tmp_path, monkeypatch):
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, free=1000))
    with pytest.raises(Fb3Error, match=r"it needs \d\.\d MB, .*resume has 0\.0 MB; there is none yet. Make room"):
        train(load_recipe("tiny", SAVED), competition, tmp_path / "run", folds=[0])
    assert not list((tmp_path / "run" / "fold0" / "resume").iterdir())
