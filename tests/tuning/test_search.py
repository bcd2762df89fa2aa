"""The search: what it trains, what it leaves, how it stops and goes on."""

import json
import os
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import torch

pytest.importorskip("optuna")

from fb3.cli import main
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.system.folder_lock import lock_folder
from fb3.training import loop
from fb3.training.run import train
from fb3.training.session import Evaluation
from fb3.tuning import search as searches
from fb3.tuning import study as studies
from fb3.tuning.search import tune
from fb3.tuning.space import read_space
from fb3.tuning.study import lies_behind, open_study, suggest
from fb3.tuning.trials import Outcome, Row, ranked
from tests.conftest import ROOT, TINY, copied

SMALL = [*TINY, "data.sample=20"]
SPACE = """
optimizer.encoder_rate: {low: 1.0e-4, high: 2.0e-3, log: true}
train.batch_size: {choices: [4, 8]}
"""


@pytest.fixture(scope="module")
def small():
    return load_recipe("tiny", SMALL)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def searched(small, space, competition, tmp_path_factory):
    """A search of three trials, one of them a start from outside the space, on two folds."""
    out = tmp_path_factory.mktemp("tune") / "study"
    tries = ["train.batch_size=5  tricks=[{kind: noise, scale: 0.1}]"]
    return tune(small, competition, out, trials=3, folds=[0, 1], finalists=1, space=space, tries=tries)


def table_of(outcome):
    return pd.read_csv(outcome.out / "trials.csv", keep_default_na=False)


def stopped_at(monkeypatch, trial, error):
    """Makes something happen in the training that is the n-th from now on."""
    plain, begun = loop.Loop.run, []

    def stopped(self, *arguments):
        begun.append(1)
        if len(begun) == trial:
            raise error
        return plain(self, *arguments)

    monkeypatch.setattr(loop.Loop, "run", stopped)


def test_a_search_trains_the_base_then_starts_then_draws(searched, small):
    table = table_of(searched)
    assert table["number"].tolist() == [0, 1, 2]
    assert table["state"].tolist() == ["complete"] * 3
    assert table["origin"].tolist() == ["base", "train.batch_size=5  tricks=[{kind: noise, scale: 0.1}]", ""]
    assert load_recipe(searched.out / "trial0000" / "recipe.yaml") == small
    assert load_recipe(searched.out / "trial0001" / "recipe.yaml").train.batch_size == 5
    drawn, row = load_recipe(searched.out / "trial0002" / "recipe.yaml"), table.iloc[2]
    assert drawn.optimizer.encoder_rate == float(row["optimizer.encoder_rate"])
    assert drawn.train.batch_size == int(row["train.batch_size"])
    assert table["optimizer.encoder_rate"][1] == ""  # outside the space: no parameters to learn from
    assert (table["seconds"].astype(float) > 0).all()


def test_the_best_of_the_first_fold_and_the_base_are_trained_on_the_others(searched):
    first = [row.scores[0] for row in searched.rows]
    further = {row.number for row in searched.rows if 1 in row.scores}
    assert further == {0, first.index(min(first))}
    for row in searched.rows:
        saved = json.loads((searched.out / f"trial{row.number:04d}" / "scores.json").read_text())
        assert row.scores == {int(fold): part["score"] for fold, part in saved["folds"].items()}
    means = {row.number: (row.scores[0] + row.scores[1]) / 2 for row in searched.rows if 1 in row.scores}
    assert searched.best.number == min(means, key=means.get)


def test_a_trial_leaves_its_record_and_no_weights(searched):
    assert not list(searched.out.rglob("*.safetensors"))
    files = {path.name for path in (searched.out / "trial0002").iterdir()}
    assert files >= {"scores.json", "recipe.yaml", "log.jsonl", "fold0"}
    assert not files & {"encoder", "scratch"}


def test_the_best_recipe_is_whole_and_trains(searched, competition, tmp_path, monkeypatch):
    best = searched.out / "best.yaml"
    assert load_recipe(best) == load_recipe(searched.out / f"trial{searched.best.number:04d}" / "recipe.yaml")
    command = ["fb3", "train", best, "--data", competition, "--out", tmp_path / "run", "--folds", "0"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    saved = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert saved["score"] == pytest.approx(searched.best.scores[0], abs=1e-6)  # what was found comes out again


def test_the_table_says_what_was_gained(searched, capsys):
    searched.show()
    shown = capsys.readouterr().out
    base, best = searched.base, searched.best
    gained = sum(best.scores.values()) / 2 - sum(base.scores.values()) / 2
    for part in ("base", "best", "difference", f"{base.scores[1]:.4f}", f"{gained:+.4f}", "3 complete"):
        assert part in shown


def tuned(monkeypatch, capsys, *arguments):
    """The last line that a search prints."""
    monkeypatch.setattr(sys, "argv", ["fb3", "tune", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out.splitlines()[-1]


def test_a_binned_base_from_a_file_and_a_last_line_that_a_shell_takes(competition, tmp_path, monkeypatch, capsys):
    odd = tmp_path / "it's $HOME & more"
    data = copied(competition, odd / "data")
    (odd / "base file.yaml").write_text(load_recipe("tiny", [*SMALL, "task.kind=binned"]).to_yaml())
    arguments = [odd / "base file.yaml", "tricks=[{kind: noise, scale: 0.1}]", "--data", data, "--out", odd / "a study"]
    line = tuned(monkeypatch, capsys, *arguments, "--trials", "2")
    command = tmp_path / "bin" / "fb3"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fb3 "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(line, shell=True, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    best = load_recipe(odd / "a study" / "best.yaml")
    assert (best.task.kind, load_recipe(odd / "a study-best" / "recipe.yaml")) == ("binned", best)
    assert {fold.name for fold in (odd / "a study-best").glob("fold?")} == {"fold0", "fold1"}


def test_an_ordinal_base_by_name_and_a_last_line_beside_an_earlier_run(competition, tmp_path, monkeypatch, capsys):
    out = tmp_path / "study"
    (tmp_path / "study-best").mkdir()
    overrides = [*SMALL, "task.kind=ordinal", "data.augment={mask: 0.05}"]
    line = tuned(monkeypatch, capsys, "tiny", *overrides, "--data", competition, "--out", out, "--trials", "2")
    expected = ["fb3", "train", out / "best.yaml", "--data", competition, "--out", tmp_path / "study-best-2"]
    assert shlex.split(line) == [*map(str, expected)]
    drawn = pd.read_csv(out / "trials.csv", keep_default_na=False)
    assert (drawn["state"][0], len(drawn)) == ("complete", 2)
    assert not drawn["message"].str.contains("unknown key").any()  # a rule may refuse what is drawn
    assert "task.squeeze" in drawn
    assert "task.loss" not in drawn


def test_a_killed_trial_is_made_again_and_the_others_are_not(searched, small, space, competition, tmp_path):
    out = copied(searched.out, tmp_path / "study")
    before = {path: path.stat().st_mtime_ns for path in out.glob("trial*/scores.json")}
    study = open_study(out, read_space(space), seed=1)
    killed = study.ask()
    rate = killed.suggest_float("optimizer.encoder_rate", 1e-4, 2e-3, log=True)
    killed.suggest_categorical("train.batch_size", ["4", "8"])
    tries = [row.origin for row in searched.rows[1:2]]
    outcome = tune(small, competition, out, trials=4, folds=[0, 1], finalists=1, space=space, tries=tries)
    table = table_of(outcome)
    assert table["state"].tolist() == ["complete"] * 3 + ["failed", "complete"]
    assert table["message"].tolist()[3] == "stopped"
    assert table["origin"].tolist()[3:] == ["", "again 3"]
    assert outcome.rows[4].parameters["optimizer.encoder_rate"] == rate
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = tune(small, competition, out, trials=4, folds=[0, 1], finalists=1, space=space, tries=tries)
    assert again.rows == outcome.rows  # --trials is the total


@pytest.mark.parametrize("what", ["recipe", "space", "train.csv", "folds"])
def test_another_search_is_refused_in_the_same_folder(searched, space, competition, tmp_path, what):
    recipe = load_recipe("tiny", [*SMALL, "train.batch_size=2"] if what == "recipe" else SMALL)
    if what == "space":
        space = tmp_path / "space.yaml"
        space.write_text(SPACE.replace("[4, 8]", "[4, 6]"))
    if what == "train.csv":
        competition = copied(competition, tmp_path / "data")
        text = (competition / "train.csv").read_text()
        (competition / "train.csv").write_text(text.replace(".", ",", 1))
    folds = [1, 0] if what == "folds" else [0, 1]
    words = r"recipe \(train\.batch_size: 8 there, 2 here\)" if what == "recipe" else what
    with pytest.raises(Fb3Error, match=f"made with another {words}; choose another --out"):
        tune(recipe, competition, searched.out, trials=9, folds=folds, space=space)
    assert len(table_of(searched)) == 3


def test_ctrl_c_leaves_the_best_so_far_and_the_search_goes_on(small, space, competition, tmp_path, monkeypatch, capsys):
    command = ["tune", "tiny", *SMALL, "--data", competition, "--out", tmp_path / "study"]
    monkeypatch.setattr(sys, "argv", ["fb3", *map(str, command), "--trials", "2", "--space", str(space)])
    stopped_at(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert load_recipe(tmp_path / "study" / "best.yaml") == small
    assert "difference" in capsys.readouterr().out
    monkeypatch.undo()
    outcome = tune(small, competition, tmp_path / "study", trials=2, space=space)
    assert [(row.state, row.origin) for row in outcome.rows] == [
        ("complete", "base"),
        ("failed", ""),
        ("complete", "again 1"),
    ]
    assert outcome.rows[1].parameters == outcome.rows[2].parameters
    assert not outcome.interrupted


def test_a_trial_behind_the_median_is_cut_off(space, competition, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_STARTUP", 1)
    recipe = load_recipe("tiny", [*SMALL, "train.epochs=2"])
    ruinous = "optimizer.encoder_rate=1.0 optimizer.head_rate=9.0 train.epochs=3"
    outcome = tune(recipe, competition, tmp_path / "study", trials=2, space=space, tries=[ruinous])
    assert [row.state for row in outcome.rows] == ["complete", "pruned"]
    events = [json.loads(line) for line in (tmp_path / "study/trial0001/log.jsonl").read_text().splitlines()]
    # At a third of its training there is nothing to compare with; at two thirds there is the base's half.
    assert [event["epoch"] for event in events if event["event"] == "evaluation"] == [1, 2]
    assert not list((tmp_path / "study").rglob("*.safetensors"))
    assert load_recipe(tmp_path / "study" / "best.yaml") == recipe


def test_a_trial_counts_with_what_it_had_by_then():
    others = [{500: 0.6, 1000: 0.4}, {333: 0.7, 667: 0.5}, {500: 0.6}, {500: 0.6}, {500: 0.6}]
    assert lies_behind({500: 0.61}, others)
    assert not lies_behind({500: 0.59}, others)
    assert not lies_behind({333: 0.9}, others)  # only one has been as far
    assert lies_behind({500: 0.65, 750: 0.61}, others)
    assert not lies_behind({1000: 0.9}, others)  # done
    assert not lies_behind({500: 0.9}, others[:4])
    assert not lies_behind({}, others)
    rising = [{at: -score for at, score in other.items()} for other in others]
    assert lies_behind({500: -0.61}, rising, lower_is_better=False)
    assert not lies_behind({500: -0.59}, rising, lower_is_better=False)


def test_minutes_end_the_search_but_not_before_the_base(small, space, competition, tmp_path, capsys):
    out = tmp_path / "study"
    outcome = tune(small, competition, out, trials=9, minutes=1e-4, folds=[0, 1], space=space)
    assert [row.origin for row in outcome.rows] == ["base"]
    assert set(outcome.base.scores) == {0}
    assert "no time is left for another trial" in capsys.readouterr().err
    assert load_recipe(out / "best.yaml") == small


def test_a_trial_that_would_end_too_late_is_not_begun(searched, small, space, competition, tmp_path):
    one = sum(row.seconds / len(row.scores) for row in searched.rows) / len(searched.rows)
    out, folds = copied(searched.out, tmp_path / "study"), [0, 1]
    # There is time for a trial and a half, but half of it is kept for the finalists.
    outcome = tune(small, competition, out, trials=9, minutes=1.5 * one / 60, folds=folds, finalists=1, space=space)
    assert len(outcome.rows) == 3


def test_refused_and_broken_draws_are_told_apart_from_good_ones(competition, tmp_path):
    # Without accumulation the average has too few moments, which only the training sees; with it the recipe refuses.
    path = tmp_path / "space.yaml"
    path.write_text("average: {overrides: true, choices: [['tricks=[{kind: swa}]'], ['task.loss=rmse']]}")
    recipe = load_recipe("tiny", [*SMALL, "train.accumulation=2"])
    outcome = tune(recipe, competition, tmp_path / "study", trials=5, space=path)
    assert outcome.best.origin == "base"
    drawn = outcome.rows[1:]
    assert len(drawn) == 4
    assert {row.parameters["average"] for row in drawn} == {"tricks=[{kind: swa}]", "task.loss=rmse"}
    for row in drawn:
        assert row.state in {"refused", "pruned"}
        if row.same_as is not None:
            assert row.message == f"the same recipe as trial {row.same_as}"
        else:
            rule = "does not add up over parts" if "rmse" in row.parameters["average"] else "it averages nothing"
            assert rule in row.message


def test_a_recipe_is_trained_once(small, competition, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("train.batch_size: {choices: [4, 8]}")
    outcome = tune(small, competition, tmp_path / "study", trials=4, space=path)
    assert len([row for row in outcome.rows if row.same_as is None]) <= 2
    for row in outcome.rows:
        if row.same_as is not None:
            assert row.scores == outcome.rows[row.same_as].scores
            assert not (tmp_path / "study" / f"trial{row.number:04d}").exists()
    assert outcome.rows[0].parameters == {"train.batch_size": "8"}  # the base lies within the space


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": [0, 7]}, "want different ones of"),
        ({"folds": [0, 0]}, "want different ones of"),
        ({"trials": 0}, "above 0"),
        ({"minutes": float("nan")}, "above 0"),
        ({"tries": ["train.epoch=3"]}, "did you mean 'train.epochs'"),
        ({"tries": ["folds.count=3"]}, "must not change within a search"),
        ({"space": "nowhere"}, "no such space"),
        ({"data": "nowhere"}, "no such file"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(small, space, competition, tmp_path, change, words):
    arguments = {"data": competition, "out": tmp_path / "study", "trials": 2, "space": space, **change}
    with pytest.raises(Fb3Error, match=words):
        tune(small, **arguments)
    assert not (tmp_path / "study").exists()


def test_an_unknown_key_of_the_space_is_refused_before_any_trial(small, competition, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("optimizer.encoder_rat: {low: 1.0e-4, high: 2.0e-3}")
    with pytest.raises(Fb3Error, match=r"unknown key optimizer.encoder_rat; did you mean 'optimizer.encoder_rate'"):
        tune(small, competition, tmp_path / "study", trials=2, space=path)
    assert not (tmp_path / "study").exists()


def test_a_base_that_does_not_train_ends_the_search(space, competition, tmp_path):
    recipe = load_recipe("tiny", [*SMALL, "tricks=[{kind: swa}]"])
    with pytest.raises(Fb3Error, match=r"the base recipe does not train: .*averages nothing"):
        tune(recipe, competition, tmp_path / "study", trials=3, space=space)
    with pytest.raises(Fb3Error, match="the base recipe does not train"):  # and is tried again
        tune(recipe, competition, tmp_path / "study", trials=3, space=space)


def test_what_breaks_every_trial_ends_the_search(small, space, competition, tmp_path, monkeypatch):
    monkeypatch.setattr(searches, "_ERRORS", 1)
    stopped_at(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(Fb3Error, match=r"1 trials in a row broke; the last: out of memory; smaller train\.batch_size"):
        tune(small, competition, tmp_path / "study", trials=9, space=space)
    table = pd.read_csv(tmp_path / "study" / "trials.csv")
    assert table["state"].tolist() == ["complete", "refused"]
    assert table["message"][1].startswith("out of memory")


def test_a_later_start_draws_other_values_from_the_whole_space(space, tmp_path):
    drawn = []
    for start in range(12):
        study = open_study(tmp_path, read_space(space), seed=7)
        if not start:
            study.enqueue_trial({})  # a base outside the space has no parameters
            study.tell(study.ask(), 1.0)
        trial = study.ask()
        drawn.append(suggest(trial, "optimizer.encoder_rate", read_space(space).entries["optimizer.encoder_rate"]))
        suggest(trial, "train.batch_size", read_space(space).entries["train.batch_size"])
        study.tell(trial, drawn[-1])
    assert len(set(drawn)) == 12
    assert sum(drawn[9:]) / 3 < sum(drawn[:9]) / 9  # after ten trials it draws from where the best ones are


def test_foreign_folders_second_searches_and_trackers_are_refused(small, space, competition, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(Fb3Error, match="not empty and no search"):
        tune(small, competition, tmp_path, trials=2, space=space)
    out = tmp_path / "study"
    out.mkdir()
    with lock_folder(out, "fb3 tune"), pytest.raises(Fb3Error, match="another fb3 tune is at work"):
        tune(small, competition, out, trials=2, space=space)
    tracked = load_recipe("tiny", [*SMALL, "train.trackers=[tensorboard]"])
    with pytest.raises(Fb3Error, match=r"train\.trackers"):
        tune(tracked, competition, tmp_path / "other", trials=2, space=space)


def test_without_optuna(small, competition, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Fb3Error, match=r"pip install optuna"):
        tune(small, competition, tmp_path / "study", trials=2)


def test_training_tells_each_evaluation_and_can_be_ended_by_it(small, competition, tmp_path):
    recipe, seen = load_recipe("tiny", [*SMALL, "train.epochs=2"]), []
    run = train(recipe, competition, tmp_path / "run", folds=[1], on_evaluation=seen.append)
    assert [(each.fold, each.share) for each in seen] == [(1, 0.5), (1, 1.0)]
    assert min(each.score.overall for each in seen) == pytest.approx(run.score.overall, abs=1e-6)

    def ended(evaluation: Evaluation):
        raise LookupError(evaluation.share)

    with pytest.raises(LookupError, match=r"0\.5"):
        train(recipe, competition, tmp_path / "ended", folds=[0], on_evaluation=ended)
    assert not (tmp_path / "ended" / "scores.json").exists()


def row(number, *scores):
    return Row(number, "", "complete", dict(enumerate(scores)), 1.0, {}, [])


def test_the_metric_says_which_trial_is_best(space, tmp_path):
    rows = [row(0, 0.5, 0.7), row(1, 0.6, 0.9), row(2, 0.4, 0.2)]
    for lower_is_better, order in ((True, [2, 0, 1]), (False, [1, 0, 2])):
        assert [each.number for each in ranked(rows, [0, 1], lower_is_better)] == order
        outcome = Outcome(tmp_path, tmp_path, rows, [0, 1], lower_is_better=lower_is_better)
        assert outcome.best.number == order[0]
        (out := tmp_path / f"lower {lower_is_better}").mkdir()
        study = open_study(out, read_space(space), seed=7, lower_is_better=lower_is_better)
        for score in (0.5, 0.6, 0.4):
            study.tell(study.ask(), score)
        assert study.best_value == (0.4 if lower_is_better else 0.6)
