"""Training on pseudo-labels: what is drawn and how it weighs, stages, distillation, leaks, and going on."""

import json
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

from fb3.data.pseudo_essays import read_pseudo_essays
from fb3.demo.synthetic import make_essays
from fb3.ensembles.ensemble import weigh
from fb3.errors import Fb3Error
from fb3.models.scorer import ModelOutput
from fb3.pseudo_labels.pseudo_folder import label_essays
from fb3.recipe import load_recipe
from fb3.runs.scores import caveats
from fb3.system.files import read_json, sha256, write_json
from fb3.tasks.build import build_task
from fb3.training.loop import Loop
from fb3.training.run import train
from fb3.training.schedule import build_schedule
from tests.conftest import TINY, copied
from tests.training.test_saves import broken_run, ended

SMALL = [*TINY, "train.batch_size=8"]


@pytest.fixture(scope="module")
def labels(run, tmp_path_factory):
    """The folder of 20 essays labelled by the tiny run."""
    folder = tmp_path_factory.mktemp("pseudo")
    texts = [essay.text for essay in make_essays(20, seed=9)]
    pd.DataFrame({"text_id": [f"u{n}" for n in range(20)], "full_text": texts}).to_csv(folder / "more.csv", index=False)
    label_essays(run, folder / "P", folder / "more.csv")
    return folder / "P"


def recipe_of(folder, use, *further):
    return load_recipe("tiny", [*SMALL, f"pseudo={{folder: {folder}, use: {use}}}", *further])


@contextmanager
def watched():
    """A list that gets the data of each fold as its loop does."""
    found, plain = [], Loop.run

    def run(self):
        found.append(self.data)
        plain(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "run", run)
        yield found


@pytest.fixture(scope="module")
def trained(labels, competition, tmp_path_factory):
    """The run of each use, and the data of its folds."""
    found = {}
    for use in ("mix", "stage", "distil"):
        with watched() as data:
            found[use] = train(recipe_of(labels, use), competition, tmp_path_factory.mktemp(use) / use).path, data
    return found


def folds_of(run):
    return pd.read_csv(run / "folds.csv", dtype={"text_id": str})


@pytest.mark.parametrize("use", ["mix", "stage", "distil"])
def test_a_fold_draws_its_training_essays_and_the_labels_made_for_it(use, labels, competition, trained):
    run, drawn = trained[use]
    essays = pd.read_csv(competition / "train.csv", dtype={"text_id": str})
    columns = list(load_recipe("tiny").data.target_columns)
    folds = folds_of(run).set_index("text_id")["fold"].loc[essays["text_id"]].to_numpy()
    for fold, data in enumerate(drawn):
        true, pseudo = np.flatnonzero(folds != fold), 60 + np.arange(20)
        wanted = {"stage": [pseudo, pseudo, true]}.get(use, [np.concatenate([true, pseudo])])
        assert [rows.tolist() for rows in data.epochs] == [rows.tolist() for rows in wanted]
        made = pd.read_csv(labels / f"fold{fold}.csv")[columns].to_numpy(np.float32)
        np.testing.assert_array_equal(data.targets[pseudo, :6], made)
        np.testing.assert_array_equal(data.targets[true, :6], essays[columns].to_numpy(np.float32)[true])
        if use == "distil":
            oof = pd.read_csv(labels / "oof.csv", dtype={"text_id": str}).set_index("text_id").loc[essays["text_id"]]
            np.testing.assert_allclose(data.targets[true, 6:], oof.to_numpy()[true], rtol=1e-6)
            np.testing.assert_array_equal(data.targets[pseudo, 6:], made)
        if use == "mix":
            both = data.epochs[0]
            assert data.weights[both].mean() == pytest.approx(1)
            np.testing.assert_allclose(data.weights[pseudo], 0.5 * data.weights[true[0]])
        else:
            assert data.weights is None
    assert set(pd.read_csv(run / "oof.csv")["text_id"]) == set(essays["text_id"])
    assert read_json(run / "environment.json")["pseudo"] == {
        "sha256": sha256(labels / "pseudo.json"),
        "use": use,
        "split": read_json(labels / "pseudo.json")["split"],
        "leaks": next(iter(caveats(run, load_recipe(run / "recipe.yaml"))), None),
        "teachers": {made["path"]: made["oof_sha256"] for made in read_json(labels / "pseudo.json")["teachers"]},
    }
    assert bool(read_json(run / "environment.json")["pseudo"]["leaks"]) == (use == "distil")


def test_stages_have_a_schedule_each_and_the_best_checkpoint_knows_true_labels(labels, competition, tmp_path):
    recipe = recipe_of(labels, "stage", "pseudo.epochs=1", "pseudo.true_rate=1.0e-9", "train.log_every_steps=1")
    run = train(recipe, competition, tmp_path / "run", folds=[0]).path
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = [event for event in log if event["event"] == "evaluation"]
    assert [event["best"] for event in found] == [False, True]
    assert found[0]["score"] == pytest.approx(found[1]["score"], abs=1e-6)  # at such a rate nothing more is learned
    assert read_json(run / "fold0" / "fold.json")["epoch"] == 2
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule, rates = build_schedule(optimizer, load_recipe("tiny", ["schedule.kind=linear"]).schedule, 6, 2, 0.5), []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == [1.0, 0.5, 0.5, 0.375, 0.25, 0.125]


@pytest.mark.parametrize(
    "task",
    [
        ["task.loss=mse", "data.target_columns=[x, y]"],
        ["task={kind: classification, classes: [a, b]}", "data.target_columns=[x]", "metric=log_loss"],
    ],
)
def test_distillation_adds_the_loss_to_the_teacher(task, tmp_path):
    task = build_task(load_recipe("tiny", [*task, "pseudo={folder: P, use: distil, weight: 3}"]))
    scores = torch.tensor([[0.2, 0.9], [1.5, -1.0]], requires_grad=True)
    truth, teacher = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    calls = []

    def model(batch):
        calls.append(batch)
        return ModelOutput(scores, None)

    out = task.loss(model, {"targets": torch.cat([truth, teacher], 1)})
    if task.target.exclusive:
        losses = [-(t * scores.log_softmax(-1)).sum(-1).mean() for t in (truth, teacher)]
    else:
        losses = [((t - scores) ** 2).mean() for t in (truth, teacher)]
    torch.testing.assert_close(out.loss, losses[0] + 3 * losses[1])
    torch.testing.assert_close(out.logs["distil"], losses[1].detach())
    assert len(calls) == 1


PIECES = {
    "mix": ["data.augment={mask: 0.2, mix: 0.3}", "tricks=[{kind: ema, decay: 0.7}]"],
    "stage": ["pseudo.epochs=1", "tricks=[{kind: awp, from_epoch: 1}]", "data.text.statistics=true"],
    "distil": ["task.r_drop={alpha: 1.0}", "model.dropout=0.1", "train.accumulation=2", "train.batch_size=4"],
}


@pytest.mark.parametrize("use", PIECES)
def test_a_resumed_fold_ends_bit_for_bit_as_the_whole_one(use, labels, competition, tmp_path, monkeypatch):
    recipe = recipe_of(labels, use, *PIECES[use], "train.save_every_steps=3")
    whole = train(recipe, competition, tmp_path / "whole", folds=[0])
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch)
    moved = recipe_of(copied(labels, tmp_path / "P"), use, *PIECES[use], "train.save_every_steps=3")
    found, wanted = ended(train(moved, competition, out, folds=[0]).path), ended(whole.path)
    assert {name for name in found if found[name] != wanted[name]} == {"recipe.yaml"}  # it names the folder


def test_other_labels_cannot_continue_a_run(labels, competition, tmp_path, monkeypatch):
    own = copied(labels, tmp_path / "P")
    recipe = recipe_of(own, "mix", "train.save_every_steps=3")
    out = broken_run(recipe, competition, tmp_path / "run", monkeypatch)
    table = pd.read_csv(own / "fold0.csv").round(1)
    table.to_csv(own / "fold0.csv", index=False)
    with pytest.raises(Fb3Error, match=r"fold0.csv: missing, or changed since"):
        train(recipe, competition, out, folds=[0])
    mended(own)
    with pytest.raises(Fb3Error, match=r"was trained with another pseudo.folder"):
        train(recipe, competition, out, folds=[0])


def mended(folder):
    """Writes the hashes of changed files into pseudo.json."""
    content = read_json(folder / "pseudo.json")
    content["files"] = {name: sha256(folder / name) for name in content["files"]}
    write_json(content, folder / "pseudo.json")


def test_labels_that_do_not_suit_the_run_are_refused(labels, run, competition, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Fb3Error, match="made for another split than this run's"):
        train(recipe_of(labels, "mix", "folds.seed=5"), competition, out)
    with pytest.raises(Fb3Error, match="allow_leaks=true does nothing"):
        train(recipe_of(labels, "mix", "pseudo.allow_leaks=true"), competition, out)
    with pytest.raises(Fb3Error, match=r"no pseudo.json in it"):
        train(recipe_of(run, "mix"), competition, out)
    label_essays(run, tmp_path / "alone")
    with pytest.raises(Fb3Error, match=r"holds no essays, and pseudo.use=stage"):
        train(recipe_of(tmp_path / "alone", "stage"), competition, out)
    own = copied(labels, tmp_path / "P")
    essays = pd.read_csv(own / "essays.csv", dtype=str)
    essays.loc[3, "text_id"] = pd.read_csv(competition / "train.csv", dtype=str)["text_id"][0]
    essays.to_csv(own / "essays.csv", index=False)
    mended(own)
    with pytest.raises(Fb3Error, match="1 essays are training essays"):
        train(recipe_of(own, "mix"), competition, out)
    with pytest.raises(Fb3Error, match=r"set pseudo.weight=1, or take mse"):
        recipe_of(labels, "mix", "task.loss=mcrmse")
    with pytest.raises(Fb3Error, match="epochs does nothing with use=mix"):
        recipe_of(labels, "mix", "pseudo.epochs=2")


def test_a_folder_without_essays_distils_and_its_student_is_no_teacher(run, competition, tmp_path):
    label_essays(run, tmp_path / "P")
    with watched() as drawn:
        student = train(recipe_of(tmp_path / "P", "distil"), competition, tmp_path / "run", folds=[0]).path
    assert [len(data.epochs[0]) for data in drawn] == [(folds_of(run)["fold"] != 0).sum()]
    with pytest.raises(Fb3Error, match=r"distilled: .* leave it out"):
        label_essays(student, tmp_path / "Q")


def test_rounds_are_a_loop_of_commands(labels, competition, trained, tmp_path):
    student, _ = trained["stage"]
    label_essays(student, tmp_path / "Q", labels / "essays.csv")
    again = train(recipe_of(tmp_path / "Q", "mix"), competition, tmp_path / "again", folds=[0]).path
    assert caveats(again, load_recipe(again / "recipe.yaml")) == ["folds [1] of 2 are not trained to their end"]
    label_essays(again, tmp_path / "half", labels / "essays.csv")
    with pytest.raises(Fb3Error, match="has no labels for fold 1, which its teachers were not trained on"):
        train(recipe_of(tmp_path / "half", "mix"), competition, tmp_path / "third")
    moved = copied(student, tmp_path / "moved")
    write_json({**read_json(moved / "environment.json"), "pseudo": {"split": "another"}}, moved / "environment.json")
    with pytest.raises(Fb3Error, match="does not say that its pseudo-labels were made for its split"):
        label_essays(moved, tmp_path / "R", labels / "essays.csv")


# Essays say nothing but their topic, and topics have random scores: an essay tells the score of the essays of its own
# topic, which stand in one fold together, and of no other essay.
TOPICS = [
    *("apple", "boat", "cloud", "drum", "eagle", "flute", "grass", "honey", "island", "jungle", "kettle", "lemon"),
    *("meadow", "night", "ocean", "pencil", "quilt", "river", "stone", "tiger", "uncle", "violin", "window", "zebra"),
]
TOPICAL = [
    *TINY,
    "train.epochs=6",
    "data.target_columns=[score]",
    "data.max_length=32",
    "metric=rmse",
    "train.batch_size=8",
]


def topical(count, seed, begin):
    draw = np.random.default_rng(seed)
    names = [begin + str(n) for n in range(len(TOPICS) * count)]
    fill = ["the", "and", "then", "some", "more", "was", "here", "very"]
    texts = [" ".join([topic] * 5 + draw.choice(fill, 8).tolist()) for topic in TOPICS for _ in range(count)]
    return pd.DataFrame({"text_id": names, "full_text": texts})


def test_labels_of_models_that_saw_the_validation_essays_better_the_score_and_safe_ones_do_not(tmp_path):
    scores = np.random.default_rng(0).permutation([1.0, 5.0] * 12)
    essays = topical(2, 0, "t").assign(score=np.repeat(scores, 2))
    for name, folds in {"safe": np.repeat([0, 1], 24), "leaky": np.arange(48) % 2}.items():
        (tmp_path / name).mkdir()
        essays.assign(fold=folds).to_csv(tmp_path / name / "train.csv", index=False)
    topical(2, 1, "u").to_csv(tmp_path / "more.csv", index=False)
    recipe = load_recipe("tiny", TOPICAL)
    teachers = {name: train(recipe, tmp_path / name, tmp_path / f"{name}-teacher") for name in ("safe", "leaky")}
    for name in teachers:
        label_essays(tmp_path / f"{name}-teacher", tmp_path / f"{name}-labels", tmp_path / "more.csv")
    mix = [[*TOPICAL, f"pseudo={{folder: {tmp_path / name}-labels, use: mix, weight: 1}}"] for name in teachers]
    with pytest.raises(Fb3Error, match="made for another split"):
        train(load_recipe("tiny", mix[1]), tmp_path / "safe", tmp_path / "refused")
    safe = train(load_recipe("tiny", mix[0]), tmp_path / "safe", tmp_path / "safe-run")
    leaky = train(load_recipe("tiny", [*mix[1], "pseudo.allow_leaks=true"]), tmp_path / "safe", tmp_path / "leaky-run")
    plain = teachers["safe"].score.overall
    assert safe.score.overall > plain - 0.35  # the best of six evaluations, by chance
    assert leaky.score.overall < plain - 0.8
    assert not caveats(safe.path, load_recipe(safe.path / "recipe.yaml"))
    assert "models that saw its validation essays" in caveats(leaky.path, load_recipe(leaky.path / "recipe.yaml"))[0]


def test_sampling_counts_a_soft_label_for_its_likeliest_class(tmp_path):
    essays = topical(4, 0, "t").assign(label=np.repeat([*"abcabdabcabd"], 8))
    essays.to_csv(tmp_path / "train.csv", index=False)
    topical(3, 1, "u").to_csv(tmp_path / "more.csv", index=False)
    labels = ["task={kind: classification}", "metric=macro_f1", "data.target_columns=[label]", "train.epochs=3"]
    recipe = [line for line in TOPICAL if not line.startswith(("metric", "data.target"))] + labels
    teacher = train(load_recipe("tiny", [*recipe, "folds.count=2"]), tmp_path, tmp_path / "teacher").path
    label_essays(teacher, tmp_path / "P", tmp_path / "more.csv")
    more = [f"pseudo={{folder: {tmp_path / 'P'}, use: distil}}", "train.sampling=balanced", "folds.count=2"]
    with watched() as folds:
        train(load_recipe("tiny", [*recipe, *more]), tmp_path, tmp_path / "student", folds=[0])
    (data,) = folds
    values = pd.read_csv(tmp_path / "P" / "fold0.csv").set_index("text_id")
    pseudo = data.epochs[0][-len(values) :]
    assert values.max(axis=1).max() < 1  # soft
    likeliest = values.to_numpy().argmax(1)
    np.testing.assert_array_equal(data.sampling.classes[pseudo], likeliest)
    drawn = data.sampling.draw(pseudo, np.random.default_rng(0))
    found = np.unique(data.sampling.classes[drawn], return_counts=True)[1]
    assert len(found) == len({*likeliest}) > 1
    assert found.max() - found.min() <= 1


def test_an_ensemble_refuses_members_that_leak_unless_asked_for_and_names_them(run, trained, tmp_path, capsys):
    (distilled, _), mixed = trained["distil"], copied(trained["mix"][0], tmp_path / "mixed")
    with pytest.raises(Fb3Error, match=r"distil/oof.csv: distilled: .* or give --allow-leaks"):
        weigh([run, distilled], tmp_path / "E")
    weigh([run, mixed], tmp_path / "safe", "equal")
    assert (
        f"{mixed}: trained on pseudo-labels that were made for its own split, by {run}, a member"
        in capsys.readouterr().err
    )
    assert not caveats(tmp_path / "safe", load_recipe(tmp_path / "safe" / "recipe.yaml"))
    made = weigh([run, distilled], tmp_path / "E", "equal", allow_leaks=True)
    assert "LEAKS, so no score here is a CV" in made.text()
    leaks = read_json(tmp_path / "E" / "ensemble.json")["leaks"]
    assert [str(distilled) in leak for leak in leaks] == [True]
    assert caveats(tmp_path / "E", load_recipe(tmp_path / "E" / "recipe.yaml")) == leaks
    with pytest.raises(Fb3Error, match="or give --allow-leaks"):
        weigh([mixed, tmp_path / "E"], tmp_path / "F")
    with pytest.raises(Fb3Error, match=r"distilled: .* leave it out"):
        label_essays(tmp_path / "E", tmp_path / "P")
    (mixed / "environment.json").unlink()
    with pytest.raises(Fb3Error, match="does not say that its pseudo-labels were made for its split"):
        weigh([run, mixed], tmp_path / "F")


def test_the_recipe_without_pseudo_labels_reads_none(tmp_path):
    assert read_pseudo_essays(load_recipe("tiny"), tmp_path, pd.DataFrame(), [], ()) is None
