"""Folds of two sessions joined, and what does not belong together."""

import json
import re
import shutil
import sys

import pytest

from fb3.bundles.packing import write_bundle
from fb3.cli import main
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.joining import merge
from fb3.training.run import train
from tests.conftest import TINY, copied

SMALL = [*TINY, "data.sample=24"]


@pytest.fixture(scope="module")
def halves(competition, tmp_path_factory):
    """Folds 0 and 1 of one recipe, in two run folders."""
    out = tmp_path_factory.mktemp("halves")
    return [train(load_recipe("tiny", SMALL), competition, out / str(n), folds=[n]).path for n in (0, 1)]


def test_merged_folds_are_the_run_that_they_would_have_been(halves, competition, tmp_path):
    whole = train(load_recipe("tiny", SMALL), competition, tmp_path / "whole")
    merged = merge(halves[::-1], tmp_path / "merged")
    assert merged.folds == [0, 1]
    assert merged.score == whole.score
    for name in ("oof.csv", "scores.json", "recipe.yaml", "folds.csv", "fold0/fold.json", "fold1/model.safetensors"):
        assert (merged.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert json.loads((merged.path / "scores.json").read_text())["complete"]
    with pytest.raises(Fb3Error, match="is there already"):
        merge(halves, tmp_path / "merged")
    write_bundle([merged.path], tmp_path / "bundle")  # and it packs


def test_the_command_calls_the_score_of_a_sample_no_cv(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fb3", "merge", *map(str, halves), "--out", str(tmp_path / "merged")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert re.search(
        r"folds \[0, 1\], out-of-fold MCRMSE 0\.\d{4} \(no CV: trained on a sample of 24 essays \(data\.sample\)\)$",
        capsys.readouterr().out.strip(),
    )


def test_a_fold_twice_or_not_at_all(halves, competition, tmp_path):
    with pytest.raises(Fb3Error, match=r"fold 0 is trained in .* and in .*; leave one of the two out"):
        merge([halves[0], halves[0]], tmp_path / "out")
    with pytest.raises(Fb3Error, match="two run folders or more"):
        merge(halves[:1], tmp_path / "out")
    begun = copied(halves[1], tmp_path / "begun")
    info = json.loads((begun / "fold1" / "fold.json").read_text())
    (begun / "fold1" / "fold.json").write_text(json.dumps({**info, "finished": False}))
    with pytest.raises(Fb3Error, match=r"folds \[1\] .*begun/fold1: not trained to the end\); .*--folds 1"):
        merge([halves[0], begun], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_recipes_data_and_splits(halves, tmp_path):
    other = copied(halves[1], tmp_path / "other")

    def refused(match):
        with pytest.raises(Fb3Error, match=match):
            merge([halves[0], other], tmp_path / "out")
        shutil.rmtree(other)
        copied(halves[1], other)

    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("epochs: 1", "epochs: 3"))
    refused(r"another recipe \(train\.epochs: 3 there, 1 here\) than")
    environment = json.loads((other / "environment.json").read_text())
    (other / "environment.json").write_text(json.dumps({**environment, "train_sha256": "0"}))
    refused(r"another train\.csv than")
    (other / "environment.json").write_text("{}")
    refused("does not say what the run was trained on")
    lines = (other / "folds.csv").read_text().splitlines()
    (other / "folds.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    refused("another split into folds than")
    (other / "encoder" / "tokenizer.json").write_text("{}")
    refused("another tokenizer")
    with (other / "fold1" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    refused("copy the run again")
    (other / "oof.csv").write_text("".join((other / "oof.csv").read_text().splitlines(keepends=True)[:-1]))
    refused(r"oof\.csv and folds \[1\] of .* hold different ids: 0 only in .*, 1 only in .*; copy the run again")
