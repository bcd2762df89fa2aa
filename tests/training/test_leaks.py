"""Nothing that is fitted for a fold knows its validation essays: other ones there change nothing, bit for bit."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from fb3.bundles import int8_scales as calibration
from fb3.bundles.int8_scales import calibrate
from fb3.bundles.packing import write_bundle
from fb3.data.essays import read_essays
from fb3.data.folds import FoldSplit
from fb3.demo.synthetic import make_essays
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import read_weights
from fb3.system.files import read_json
from fb3.targets.build import target_of
from fb3.training.loop import Loop
from fb3.training.run import train, train_fold
from tests.conftest import TINY

VALID = np.arange(0, 12)
TRAIN = np.arange(12, 36)
STATISTICS, RARITY = "data.text.statistics=true", "model.pooling={kind: token_weighted}"
CLASSES = [str(half / 2) for half in range(2, 11)]
KINDS = {
    "regression": [STATISTICS, RARITY, "task.loss=mse", "task.terms=[{kind: rank}, {kind: pearson}]"],
    "binned": [STATISTICS, RARITY, "task={kind: binned, squeeze: 0.1, smoothing: 0.1}"],
    "ordinal": [STATISTICS, "task={kind: ordinal, weighting: uncertainty}"],
    "labels": [
        f"task={{kind: classification, class_weights: {{kind: balanced}}, classes: {CLASSES}}}",
        "data.target_columns=[cohesion]",
        "metric=log_loss",
        "train.sampling=sqrt",
        "data.weight_column=syntax",
    ],
    "two encoders": [RARITY, "model.stitch={backbone: BACKBONE, frozen: none, pooling: {kind: token_weighted}}"],
    "drawn": ["data.augment={mask: 0.2, mix: 0.5}", "model.dropout=0.2", "task.r_drop={}", "data.windows={length: 32}"],
    "unlabelled": ["task.uda={file: TEST, augment: {mask: 0.3}}", "tricks=[{kind: ema, decay: 0.5}]"],
}


def others(essays, columns):
    """The same with other validation essays: longer, of words of their own, all with the best scores."""
    essays = essays.copy()
    essays.loc[VALID, "full_text"] = [f"{essay.text}\n\nQuartz, quartz & QUARTZ!" for essay in make_essays(12, seed=9)]
    for column in columns:
        essays.loc[VALID, column] = "5.0" if essays[column].dtype == object else 5.0
    return essays


@pytest.fixture
def watched(monkeypatch):
    """The states of model and task as each training finds them, and the losses of its steps."""
    found = []
    run, step = Loop.run, Loop.gradients

    def running(self, *arguments):
        states = {**self.scorer.state_dict(), **{f"task.{n}": p for n, p in enumerate(self.task.parameters())}}
        found.append({name: tensor.detach().clone() for name, tensor in states.items()})
        run(self, *arguments)

    def stepping(self, *arguments):
        out = step(self, *arguments)
        found[-1][f"loss {self.step.number}"] = out.loss
        return out

    monkeypatch.setattr(Loop, "run", running)
    monkeypatch.setattr(Loop, "gradients", stepping)
    return found


def differ(one, two):
    """Names under which two sets of tensors are not the same, bit for bit."""
    assert one.keys() == two.keys()
    return {name for name, tensor in one.items() if not torch.equal(tensor, two[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_other_validation_essays_change_nothing_that_is_fitted(kind, run, competition, tmp_path, watched):
    few = ["model.backbone=BACKBONE", "data.max_length=64", "train.batch_size=12", "train.keep=all"]
    places = {"BACKBONE": str(run / "scratch"), "TEST": str(competition / "test.csv")}
    chosen = [re.sub("|".join(places), lambda found: places[found[0]], text) for text in [*few, *KINDS[kind]]]
    recipe = load_recipe("tiny", [*TINY, *chosen])
    columns = list(recipe.data.target_columns)
    essays = read_essays(competition / "train.csv", recipe.data, target_of(recipe)).iloc[:36].reset_index(drop=True)
    split = FoldSplit(0, TRAIN, VALID)
    one = train_fold(recipe, essays, split, tmp_path / "one")
    two = train_fold(recipe, others(essays, columns), split, tmp_path / "two")
    assert not np.allclose(one.values, two.values), "the other essays are read"
    assert {"loss 0", "loss 1"} < watched[0].keys()
    assert differ(*watched) == set(), "as the training began, and its losses"
    folds = [tmp_path / name / "fold0" / "step2" for name in ("one", "two")]
    assert differ(*(read_weights(fold / "model.safetensors") for fold in folds)) == set(), "as it ended"
    means = [read_json(fold / "fold.json")["target_means"] for fold in folds]
    target = target_of(recipe)
    wanted = dict(zip(target.columns, target.truths(essays)[TRAIN].mean(0).tolist(), strict=True))
    assert means[0] == means[1] == pytest.approx(wanted)


def test_other_validation_essays_change_no_scale_of_int8(competition, tmp_path, monkeypatch):
    """Each fold's are measured on essays that it was trained on; the other fold's are those that changed here."""
    monkeypatch.setattr(calibration, "TOLERANCE", np.inf)
    recipe = load_recipe("tiny", ["train.precision=fp32", "train.epochs=1", "data.max_length=64"])
    run = train(recipe, competition, tmp_path / "run").path
    table = pd.read_csv(competition / "train.csv", dtype=str)
    valid = table["text_id"].isin(pd.read_csv(run / "folds.csv").query("fold == 0")["text_id"])
    table.loc[valid, "full_text"] = [f"Quartz, quartz! {essay.text}" for essay in make_essays(int(valid.sum()), seed=9)]
    (tmp_path / "other").mkdir()
    table.to_csv(tmp_path / "other" / "train.csv", index=False)
    scales = {}
    for name, data in (("own", competition), ("other", tmp_path / "other")):
        write_bundle([run], tmp_path / name / "bundle", int8=calibrate(data))
        for fold in ("fold0", "fold1"):
            scales[name, fold] = read_weights(tmp_path / name / "bundle" / "runs" / "run" / fold / "int8.safetensors")
    assert differ(scales["own", "fold0"], scales["other", "fold0"]) == set()
    assert differ(scales["own", "fold1"], scales["other", "fold1"]), "the change can be seen"
