"""Runs: what a folder holds, what may be added to it, what is refused."""

import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from fb3.bundles.packing import write_bundle
from fb3.cli import main
from fb3.data.essays import read_essays
from fb3.data.folds import make_folds
from fb3.data.tokenizer import load_tokenizer
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.scores import scores_of
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256
from fb3.targets import metric_file
from fb3.targets.build import target_of
from fb3.targets.metrics import mcrmse
from fb3.training import loop, processes
from fb3.training.run import train, train_fold
from fb3.verification.check import verify
from tests.conftest import TINY, copied

SMALL = [*TINY, "data.sample=20"]


def command(*arguments):
    """Exit status of an fb3 command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fb3", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0


def test_a_run_folder_holds_what_the_house_says(run):
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    scratch = {name for name in files if name.startswith("scratch/")}
    assert files - scratch == {
        "recipe.yaml",
        "folds.csv",
        "oof.csv",
        "scores.json",
        "log.jsonl",
        "environment.json",
        "lock",
        "encoder/config.json",
        "encoder/tokenizer.json",
        "encoder/tokenizer_config.json",
        *(f"fold{n}/{name}" for n in (0, 1) for name in ("model.safetensors", "fold.json")),
    }


def test_scores_recompute_from_oof_and_the_data(run, competition):
    scores = json.loads((run / "scores.json").read_text())
    recipe = load_recipe(run / "recipe.yaml")
    oof = pd.read_csv(run / "oof.csv", dtype={"text_id": str})
    truth = pd.read_csv(competition / "train.csv", dtype={"text_id": str}).set_index("text_id").loc[oof["text_id"]]
    columns = list(recipe.data.target_columns)
    assert scores["score"] == pytest.approx(mcrmse(truth[columns].to_numpy(), oof[columns].to_numpy()), abs=1e-9)
    assert scores == scores_of(run, recipe)
    assert scores["complete"]
    assert len(oof) == oof["text_id"].nunique() == 60
    folds = pd.read_csv(run / "folds.csv", dtype={"text_id": str})
    assert dict(zip(folds["text_id"], folds["fold"], strict=True)) == dict(
        zip(oof["text_id"], oof["fold"], strict=True)
    )
    for fold in (0, 1):
        info = json.loads((run / f"fold{fold}" / "fold.json").read_text())
        assert info["score"] == pytest.approx(scores["folds"][str(fold)]["score"], abs=1e-6)


def test_one_seed_gives_one_score(competition, tmp_path):
    recipe = load_recipe("tiny", SMALL)
    first, second = (train(recipe, competition, tmp_path / name).score.overall for name in "ab")
    assert first == pytest.approx(second, abs=1e-6)
    other = train(load_recipe("tiny", [*SMALL, "train.seed=1"]), competition, tmp_path / "c").score.overall
    assert other != first


def test_a_tokenizer_made_on_the_spot_knows_all_texts_of_an_item(competition, tmp_path):
    data = copied(competition, tmp_path / "data")
    table = pd.read_csv(data / "train.csv")
    table.assign(title="ψωμί").to_csv(data / "train.csv", index=False)
    parts = "data.text.parts=[{column: full_text}, {column: title, share: 0.2}]"
    out = train(load_recipe("tiny", [*SMALL, parts, "train.epochs=1"]), data, tmp_path / "run", folds=[0]).path
    assert "[UNK]" not in load_tokenizer(out / "encoder")[0].encode("ψωμί").tokens


def test_an_average_teaches_from_its_first_step_on(competition, tmp_path):
    lines = ["train.log_every_steps=1", "train.epochs=2", "tricks=[{kind: ema, decay: 0.5, teach: 0.4}]"]
    out = train(load_recipe("tiny", [*SMALL, *lines]), competition, tmp_path / "run", folds=[0]).path
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    taught = ["momentum" in event.get("terms", {}) for event in events if event["event"] == "step"]
    assert taught == [False, *[True] * (len(taught) - 1)]
    assert len(taught) > 2


def test_folds_can_be_added_and_are_never_overwritten(competition, tmp_path, run):
    recipe = load_recipe("tiny", SMALL)
    out = tmp_path / "run"
    first = train(recipe, competition, out, folds=[1])
    assert first.folds == [1]
    assert not json.loads((out / "scores.json").read_text())["complete"]
    with pytest.raises(Fb3Error, match=r"folds \[1\] are trained already; give --folds 0"):
        train(recipe, competition, out, folds=[1])
    both = train(recipe, competition, out)
    assert both.folds == [0, 1]
    together = train(recipe, competition, tmp_path / "together")
    assert both.score.overall == pytest.approx(together.score.overall, abs=1e-6)
    environment = json.loads((out / "environment.json").read_text())
    (earlier,) = environment.pop("earlier")  # whose fold 1 is
    assert earlier.keys() == environment.keys()
    assert earlier["started"] <= environment["started"]
    assert environment["seeds"] == {"train": 42, "folds": 42}
    assert set(environment["git"]) == {"here", "fb3"}
    assert "earlier" not in json.loads((together.path / "environment.json").read_text())


def test_a_folder_of_something_else_is_left_alone(competition, tmp_path, run):
    with pytest.raises(Fb3Error, match=r"another recipe \(train\.epochs: 1 there, 9 here\)"):
        train(load_recipe("tiny", [*TINY, "train.epochs=9"]), competition, copied(run, tmp_path / "run"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(Fb3Error, match="no run folder"):
        train(load_recipe("tiny", SMALL), competition, tmp_path / "mine")
    moved = copied(competition, tmp_path / "data")
    (moved / "train.csv").write_text((competition / "train.csv").read_text().replace("the", "teh"))
    kept = copied(run, tmp_path / "kept")
    (kept / "fold1" / "fold.json").unlink()
    with pytest.raises(Fb3Error, match=r"trained with another train\.csv"):
        train(load_recipe("tiny", TINY), moved, kept)
    with pytest.raises(Fb3Error, match=r"no fold \[7\]; there are \[0, 1\]"):
        train(load_recipe("tiny", SMALL), competition, tmp_path / "x", folds=[7])


def test_a_start_that_failed_may_be_started_over(competition, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Fb3Error, match="no such folder"):
        train(load_recipe("tiny", [*SMALL, "model.backbone=/nowhere"]), competition, out)
    with pytest.raises(Fb3Error, match="has 2 layers"):
        train(load_recipe("tiny", [*SMALL, "model.freeze_layers=9"]), competition, out)
    assert train(load_recipe("tiny", SMALL), competition, out, folds=[0]).folds == [0]


def test_a_fold_that_was_stopped_is_trained_again(competition, tmp_path, monkeypatch):
    recipe = load_recipe("tiny", [*SMALL, "train.epochs=2"])
    out = tmp_path / "run"
    whole = train(recipe, competition, tmp_path / "whole", folds=[0, 1])
    train(recipe, competition, out, folds=[0])
    plain = loop.Loop.optimizer_step

    def stopped(self, step, *arguments):
        if step.epoch == 1:
            raise KeyboardInterrupt
        return plain(self, step, *arguments)

    monkeypatch.setattr(loop.Loop, "optimizer_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, competition, out, folds=[1])
    monkeypatch.undo()
    assert (out / "fold1" / "fold.json").is_file()
    assert train(recipe, competition, out, folds=[1]).score.overall == pytest.approx(whole.score.overall, abs=1e-6)


def test_a_tracker_that_is_not_installed(competition, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "get_available_trackers", lambda: [])
    with pytest.raises(Fb3Error, match="pip install wandb"):
        train(load_recipe("tiny", [*SMALL, "train.trackers=[wandb]"]), competition, tmp_path / "run")


def test_debug_is_a_hundred_essays_two_folds_two_epochs_and_said_wherever_it_goes(tmp_path, capsys):
    from fb3.demo.synthetic import write_competition

    data = tmp_path / "data"
    write_competition(data, 130, 3, seed=5)
    run = train(load_recipe("tiny", ["folds.count=5", "train.epochs=9"]), data, tmp_path / "run", debug=True)
    assert run.folds == [0, 1]
    assert len(pd.read_csv(run.path / "oof.csv")) == 100
    saved = load_recipe(run.path / "recipe.yaml")
    assert (saved.folds.count, saved.train.epochs, saved.data.sample) == (2, 2, 100)
    no_cv = "no CV: a --debug run, 100 essays and 2 epochs"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"out-of-fold MCRMSE {run.score.overall:.4f} ({no_cv}) over 100 essays")
    packed = write_bundle([run.path], tmp_path / "bundle")
    assert packed.manifest["runs"][0]["caveats"] == ["a --debug run, 100 essays and 2 epochs"]
    assert f"WARNING: {run.path}: its score is {no_cv}" in capsys.readouterr().err
    for place in (run.path, packed.path):
        assert re.search(f"^note .*scores.json: {no_cv}$", verify(place).text(), re.MULTILINE)
    infer(packed.path, data, tmp_path / "submission.csv")
    assert f"run: its out-of-fold score is {no_cv}" in capsys.readouterr().err
    oof = str(run.path / "oof.csv")
    for flag in ([], ["--json"]):
        assert command("score", oof, str(data / "train.csv"), "--subset", *flag) == 0
    plain, as_json = capsys.readouterr().out.split("\n{")
    assert plain.endswith(no_cv)
    assert json.loads("{" + as_json)["caveats"] == packed.manifest["runs"][0]["caveats"]


def test_a_holdout_is_one_split(competition, tmp_path):
    run = train(load_recipe("tiny", [*TINY, "folds.holdout=0.2"]), competition, tmp_path / "run")
    assert run.folds == [0]
    assert json.loads((run.path / "scores.json").read_text())["complete"]
    numbers = pd.read_csv(run.path / "folds.csv")["fold"].value_counts().to_dict()
    assert set(numbers) == {-1, 0}
    assert 8 <= numbers[0] <= 16


def test_a_fold_column_of_the_file_decides(competition, tmp_path):
    table = pd.read_csv(competition / "train.csv", dtype={"text_id": str}).iloc[:18]
    (tmp_path / "data").mkdir()
    table.assign(fold=np.arange(18) % 3).to_csv(tmp_path / "data" / "train.csv", index=False)
    run = train(load_recipe("tiny", TINY), tmp_path / "data", tmp_path / "run", folds=[2])
    kept = pd.read_csv(run.path / "oof.csv", dtype={"text_id": str})
    assert set(kept["text_id"]) == set(table["text_id"].iloc[2::3])


def test_train_fold_stands_alone(competition, tmp_path):
    recipe = load_recipe("tiny", SMALL)
    essays = read_essays(competition / "train.csv", recipe.data, target_of(recipe)).iloc[:20].reset_index(drop=True)
    split = make_folds(essays, recipe)[0]
    predictions = train_fold(recipe, essays, split, tmp_path / "run")
    assert predictions.ids.tolist() == essays["text_id"].to_numpy()[split.valid_rows].tolist()
    assert np.isfinite(predictions.values).all()


def test_no_spread_is_warned_of(competition, tmp_path, capsys):
    train(
        load_recipe("tiny", [*SMALL, "optimizer.encoder_rate=1e-9", "optimizer.head_rate=1e-9"]),
        competition,
        tmp_path / "r",
    )
    assert "predicts nearly the same for every essay" in capsys.readouterr().err
    assert '"predictions without spread"' in (tmp_path / "r" / "log.jsonl").read_text()


def test_no_optimizer_state_and_float32_weights(run):
    with safe_open(run / "fold0" / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in list(file.keys())} == {"torch.float32"}


def test_tensorboard_through_accelerate(competition, tmp_path):
    pytest.importorskip("tensorboard")
    run = train(load_recipe("tiny", [*SMALL, "train.trackers=[tensorboard]"]), competition, tmp_path / "run", folds=[0])
    assert list(run.path.rglob("events.out.tfevents*"))


def test_the_log_has_steps_and_evaluations(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["event"] == "step")
    assert {"loss", "mean_loss", "gradient_norm", "rate", "elapsed", "remaining"} <= step.keys()
    evaluation = next(line for line in lines if line["event"] == "evaluation")
    assert {"valid_loss", "score", "columns"} <= evaluation.keys()


def test_errors_of_the_command_line_are_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["fb3", "train", "tiny", "--data", str(tmp_path), "--out", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_further_folds_keep_the_encoder_folder_of_the_first(run, competition, tmp_path):
    out = copied(run, tmp_path / "run")
    shutil.rmtree(out / "fold1")
    tokenizer = out / "encoder" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")  # a form in which another version of its library writes it
    before = sha256(tokenizer)
    train(load_recipe(out / "recipe.yaml"), competition, out, folds=[1])
    assert sha256(tokenizer) == before
    assert read_json(out / "environment.json")["encoder"]["tokenizer.json"] == before


def test_another_metric_decides_and_is_named(competition, tmp_path, capsys):
    """Spearman grows: the best evaluation is the highest, and every report calls it by its name."""
    overrides = [*SMALL, "metric=spearman", "train.epochs=3"]
    run = train(load_recipe("tiny", overrides), competition, tmp_path / "run", folds=[0])
    said = capsys.readouterr()
    events = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    scores = [event["score"] for event in events if event["event"] == "evaluation"]
    assert len(scores) == 3
    assert read_json(run.path / "fold0" / "fold.json")["score"] == max(scores)
    assert not run.score.lower_is_better
    oof = pd.read_csv(run.path / "oof.csv")
    columns = list(run.score.columns)
    ranks = [oof[column].corr(oof["true_" + column], method="spearman") for column in columns]
    assert run.score.overall == pytest.approx(np.nan_to_num(ranks).mean())
    assert f": Spearman {scores[0]:.4f}" in said.out + said.err
    assert f"out-of-fold Spearman {run.score.overall:.4f}" in said.out + said.err
    assert verify(run.path).passed
    assert command("score", str(run.path / "oof.csv"), str(competition / "train.csv"), "--subset") == 0
    assert capsys.readouterr().out.startswith(f"Spearman {run.score.overall:.6f}")
    assert (
        command("score", str(run.path / "oof.csv"), str(competition / "train.csv"), "--subset", "--metric", "mae") == 0
    )
    assert capsys.readouterr().out.startswith("MAE ")
    assert command("score", str(run.path / "oof.csv"), str(competition / "train.csv"), "--metric", "spearmann") == 1
    assert "did you mean 'spearman'?" in capsys.readouterr().err


def test_a_metric_of_ones_own_trains_and_scores_and_is_not_wanted_at_inference(competition, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def worst_column(truth, predicted):\n    return ((truth - predicted) ** 2).mean(0).max()\n")
    overrides = [*SMALL, f"metric={{file: {json.dumps(str(file))}, function: worst_column, lower_is_better: true}}"]
    run = train(load_recipe("tiny", overrides), competition, tmp_path / "run", folds=[0])
    oof = pd.read_csv(run.path / "oof.csv")
    columns = load_recipe(run.path / "recipe.yaml").data.target_columns
    assert run.score.overall == pytest.approx(max(((oof[c] - oof["true_" + c]) ** 2).mean() for c in columns))
    assert f"out-of-fold worst_column {run.score.overall:.4f}" in capsys.readouterr().err
    assert verify(run.path).passed
    assert command("score", str(run.path / "oof.csv"), str(competition / "train.csv"), "--subset") == 0
    assert capsys.readouterr().out.startswith(f"worst_column {run.score.overall:.6f}")
    bundle = write_bundle([run.path], tmp_path / "bundle").path
    file.unlink()
    metric_file._load.cache_clear()
    assert len(infer(bundle, competition, tmp_path / "submission.csv"))
    assert command("score", str(run.path / "oof.csv"), str(competition / "train.csv"), "--subset") == 1
    assert "mine.py:worst_column: no such file" in capsys.readouterr().err


def test_a_metric_that_the_targets_cannot_have_is_refused_in_words(competition, tmp_path):
    with pytest.raises(Fb3Error, match=r"^fold 0: QWK of column 'cohesion': has truths that are no .*set metric=rmse$"):
        train(load_recipe("tiny", [*SMALL, "metric=qwk"]), competition, tmp_path / "run", folds=[0])
    assert not (tmp_path / "run").exists(), "nothing was begun"
