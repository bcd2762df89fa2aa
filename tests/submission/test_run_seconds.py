"""Seconds of runs: FLOPs on a T4, measured here, and `fb3 ensemble --limit`."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fb3.cli import app
from fb3.data.tokens import encode_essays
from fb3.errors import Fb3Error
from fb3.models.flops import T4_FLOPS, forward_flops
from fb3.prediction.run_flops import trained_run
from fb3.submission.run_seconds import price_members
from tests.conftest import copied


def test_a_t4_takes_the_flops_of_all_folds_and_essays(run, competition, capsys):
    other = run.parent / "elsewhere.csv"
    paths, limit = price_members([run, other], "2h", 1000, "t4", competition)
    assert paths == [run]
    assert limit.seconds == 7200
    member = trained_run(run)
    lengths = encode_essays(pd.read_csv(competition / "train.csv"), run / "encoder", member.recipe.data).lengths
    config = json.loads((run / "encoder" / "config.json").read_text())
    flops = forward_flops(config, lengths).mean()
    assert limit.of_members[0] == pytest.approx(len(member.folds) * 1000 * flops / T4_FLOPS, rel=0.1)
    assert "elsewhere.csv: no trained run, so nothing can predict with it" in capsys.readouterr().err


def test_essays_are_the_tests_where_it_is_no_sample(run, competition, tmp_path, capsys):
    price_members([run], "2h", data=competition)
    assert "2700 essays, because no test.csv tells how many" in capsys.readouterr().err
    data = copied(competition, tmp_path / "data")
    test = pd.read_csv(data / "test.csv")
    pd.concat([test] * 200).iloc[:120].to_csv(data / "test.csv", index=False)
    _, limit = price_members([run], "2h", data=data)
    assert limit.machine == "a T4 by FLOPs, 120 essays"


def test_this_machine_is_measured(run):
    _, limit = price_members([run], "2h", 500, "here")
    assert limit.of_members[0] > 0
    with pytest.raises(Fb3Error, match="--machine her: no such machine; did you mean 'here'"):
        price_members([run], "2h", 500, "her")
    with pytest.raises(Fb3Error, match="no trained run among the members"):
        price_members([run / "oof.json"], "2h")


def test_the_command_chooses_members_and_keeps_the_frontier(run, competition, tmp_path):
    other = copied(run, tmp_path / "other")
    oof = pd.read_csv(other / "oof.csv", dtype={"text_id": str})
    truths = [column for column in oof.columns if column.startswith("true_")]
    noise = np.random.default_rng(0).normal(0, 0.4, (len(oof), len(truths)))
    oof[[column.removeprefix("true_") for column in truths]] = (oof[truths].to_numpy() + noise).clip(1, 5)
    oof.to_csv(other / "oof.csv", index=False)
    call = ["ensemble", str(run), str(other), "--data", str(competition), "--out", str(tmp_path / "E")]
    done = CliRunner().invoke(app, [*call, "--limit", "2h", "--essays", "100"])
    assert done.exit_code == 0, done.output
    assert "on a T4 by FLOPs, 100 essays; limit 7200 s" in done.output
    assert (tmp_path / "E" / "frontier.csv").is_file()
    refused = CliRunner().invoke(app, [*call, "--essays", "100"])
    assert isinstance(refused.exception, Fb3Error)
