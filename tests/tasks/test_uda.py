"""UDA: its loss, its batches, whom its gradient reaches, and runs with it."""

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.data.augmentation.augmented_essays import augment_essays
from fb3.data.essays import read_essays
from fb3.data.folds import make_folds
from fb3.data.tokenizer import load_tokenizer
from fb3.data.tokens import encode_texts
from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.recipe import load_recipe
from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.task import UdaSettings
from fb3.submission.inference import infer
from fb3.targets.build import target_of
from fb3.tasks.build import build_task
from fb3.tasks.uda import UDA
from fb3.training import processes, session
from fb3.training.run import train, train_fold
from tests.conftest import TINY

KINDS = ["regression", "binned", "ordinal"]
NOTHING = AugmentSettings(mix=0.5)  # mixes with targets only, so it leaves essays without them as they are


@pytest.fixture
def unlabelled(run, tiny, competition):
    """Texts, and their tokens, of the 20 test essays."""
    texts = read_essays(competition / "test.csv", tiny.data)["full_text"].tolist()
    return texts, run / "encoder", tiny.data


def consistent(unlabelled, task, augment=None, essays=20, batch_size=4, weight=2.0, seed=3, **share):
    texts, encoder, data = unlabelled
    augment = augment or AugmentSettings(mask=0.3, delete=0.2)
    settings = UdaSettings.model_construct(file="", weight=weight, batch_size=batch_size, augment=augment)
    plain = encode_texts(texts[:essays], encoder, data)
    changed = augment_essays(plain, texts, load_tokenizer(encoder)[0], data, augment, seed)
    return UDA(task, settings, plain, changed, seed, **share)


def labelled():
    ids = torch.randint(5, 100, (3, 12))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": torch.rand(3, 6) * 4 + 1}


def parts(kind, run):
    """A task and a model for it, without dropout, in training."""
    recipe = load_recipe("tiny", [f"task.kind={kind}"])
    torch.manual_seed(0)
    scorer = build_scorer(recipe, run / "encoder", init="config").train()
    torch.nn.init.normal_(scorer.head.linear.weight)
    return build_task(recipe), scorer


def watched(scorer, seen):
    """The model, what it gets and gives written down."""

    def model(batch):
        out = scorer(batch)
        seen.append((batch, out.scores))
        return out

    return model


def rows_of(task, scorer, steps):
    """The unlabelled essays of so many steps."""
    seen = []
    with torch.no_grad():
        for _ in range(steps):
            task.loss(watched(scorer, seen), labelled())
    return [batch["row"].tolist() for batch, _ in seen[1::3]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_tasks_and_the_weighted_distance(kind, run, unlabelled):
    inner, scorer = parts(kind, run)
    task, batch, seen = consistent(unlabelled, inner), labelled(), []
    out = task.loss(watched(scorer, seen), batch)
    (first, _), (plain, wanted), (changed, got) = seen
    assert first is batch
    assert plain["row"].tolist() == changed["row"].tolist()
    encoded = encode_texts(unlabelled[0], *unlabelled[1:])
    for row, ids, mask in zip(plain["row"], plain["input_ids"], plain["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == encoded.rows[row].tolist()
    mask = load_tokenizer(unlabelled[1])[0].token_to_id("[MASK]")
    assert mask in changed["input_ids"]
    assert mask not in plain["input_ids"]
    apart = inner.distance(wanted, got)
    assert apart > 1e-6
    torch.testing.assert_close(out.loss, inner.loss(scorer, batch).loss + 2.0 * apart)
    torch.testing.assert_close(out.logs["uda"], apart.detach())
    assert not out.logs["uda"].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_changes_there_is_no_distance(kind, run, unlabelled):
    inner, scorer = parts(kind, run)
    batch = labelled()
    out = consistent(unlabelled, inner, NOTHING).loss(scorer, batch)
    assert out.logs["uda"] == 0
    assert out.loss == inner.loss(scorer, batch).loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_goes_through_the_copies_alone(kind, run, unlabelled):
    inner, scorer = parts(kind, run)
    task, batch, seen = consistent(unlabelled, inner), labelled(), []
    loss = task.loss(watched(scorer, seen), batch).loss
    (plain, wanted), (changed, _) = seen[1:]
    assert not wanted.requires_grad

    def gradient(loss):
        found = torch.autograd.grad(loss, list(scorer.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    found = gradient(loss)
    plainly = gradient(inner.loss(scorer, batch).loss)
    got = scorer(changed).scores
    torch.testing.assert_close(found, plainly + gradient(2.0 * inner.distance(got, wanted)), atol=1e-5, rtol=1e-3)
    through_both = gradient(2.0 * inner.distance(scorer(changed).scores, scorer(plain).scores))
    assert not torch.allclose(found, plainly + through_both, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_every_essay_comes_once_a_cycle_each_in_a_new_order(size, run, unlabelled):
    inner, scorer = parts("regression", run)
    cycle = -(-20 // size)
    batches = rows_of(consistent(unlabelled, inner, batch_size=size), scorer, 2 * cycle)
    first, second = ([row for batch in half for row in batch] for half in (batches[:cycle], batches[cycle:]))
    assert sorted(first) == sorted(second) == list(range(20))
    assert sorted(map(len, batches[:cycle]))[1:] == [size] * (cycle - 1)
    if size < 20:
        assert first != second


def test_a_seed_fixes_batches_and_changes(run, unlabelled):
    inner, scorer = parts("regression", run)

    def drawn(seed):
        seen, task = [], consistent(unlabelled, inner, seed=seed)
        for _ in range(6):  # more than a cycle
            task.loss(watched(scorer, seen), labelled())
        return [batch["row"].tolist() for batch, _ in seen[1::3]], [batch["input_ids"] for batch, _ in seen[2::3]]

    (rows, ids), (again, same), (others, _) = drawn(1), drawn(1), drawn(2)
    assert rows == again
    assert all(torch.equal(one, two) for one, two in zip(ids, same, strict=True))
    assert rows != others


def test_the_same_batch_again_comes_with_the_same_essays_changes_and_targets(run, unlabelled):
    inner, scorer = parts("regression", run)
    task, batch, seen = consistent(unlabelled, inner), labelled(), []
    task.loss(watched(scorer, seen), batch)
    wanted = seen[1][1]
    with torch.no_grad():
        scorer.encoder.get_input_embeddings().weight.mul_(1.5)
    moved = task.loss(watched(scorer, seen), batch)
    assert len(seen) == 3 + 2, "the plain essays are not asked again"
    assert seen[4][0] is seen[2][0]
    assert not torch.equal(seen[4][1], seen[2][1])
    torch.testing.assert_close(moved.logs["uda"], inner.distance(seen[4][1], wanted).detach())
    task.loss(watched(scorer, seen), dict(batch))
    assert len(seen) == 5 + 3
    assert seen[6][0]["row"].tolist() != seen[1][0]["row"].tolist()


def test_a_batch_in_parts_comes_back_part_by_part(run, unlabelled):
    inner, scorer = parts("regression", run)
    task, first, second, seen = consistent(unlabelled, inner), labelled(), labelled(), []
    with torch.no_grad():
        for batch in (first, second, first, second):
            task.loss(watched(scorer, seen), batch)
    assert task.state_dict()["count"] == 2
    changed = [batch["row"].tolist() for batch, _ in seen if batch is not first and batch is not second]
    (plain_one, one, plain_two, two), again = changed[:4], changed[4:]
    assert plain_one == one != two == plain_two
    assert again == [one, two], "the same copies, and no targets anew"


def test_processes_share_a_batch_and_none_stands_idle(run, unlabelled):
    inner, scorer = parts("regression", run)
    whole = rows_of(consistent(unlabelled, inner, essays=5), scorer, 2)
    shares = [
        rows_of(consistent(unlabelled, inner, essays=5, process=process, processes=2), scorer, 2) for process in (0, 1)
    ]
    assert sorted(map(len, whole)) == [1, 4]
    for rows, one, two in zip(whole, *shares, strict=True):
        assert (one, two) == ((rows[::2], rows[1::2]) if len(rows) > 1 else (rows, rows))


SMALL_RUN = [*TINY, "data.sample=24", "train.epochs=2", "train.batch_size=4"]


@pytest.fixture
def file(competition, tmp_path):
    """Essays without scores, beside no other file."""
    path = tmp_path / "unlabelled.csv"
    pd.read_csv(competition / "test.csv", dtype=str)[["text_id", "full_text"]].to_csv(path, index=False)
    return path


def uda(file, **more):
    return f"task.uda={ {'file': str(file), 'augment': {'mask': 0.2}, 'batch_size': 4, **more} }"  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["task.kind=binned"],
        ["task={kind: ordinal, squeeze: 0.001, r_drop: {alpha: 1.0}}", "model.dropout=0.1"],
        ["data.augment={delete: 0.1}", "tricks=[{kind: fgm}]"],
        ["data.windows={length: 48}"],
    ],
)
def test_one_line_trains_packs_and_infers_without_the_file(lines, competition, file, tmp_path):
    plain = train(load_recipe("tiny", [*SMALL_RUN, *lines]), competition, tmp_path / "plain", folds=[0])
    recipe = load_recipe("tiny", [*SMALL_RUN, *lines, uda(file, weight=3.0)])
    run = train(recipe, competition, tmp_path / "run", folds=[0])
    assert 0.3 < run.score.overall < 1.5
    assert run.score.overall != plain.score.overall
    file.unlink()
    bundle = write_bundle([run.path], tmp_path / "bundle", check=replay(None, essays=6))
    assert len(infer(bundle.path, competition, tmp_path / "submission.csv")) == 20


def test_one_batch_a_step_however_often_a_trick_asks(competition, tmp_path, monkeypatch):
    drawn, asked = [], []
    draw, loss = UDA._draw, UDA.loss
    monkeypatch.setattr(UDA, "_draw", lambda *given: drawn.append(1) or draw(*given))
    monkeypatch.setattr(UDA, "loss", lambda *given: asked.append(1) or loss(*given))
    recipe = load_recipe("tiny", [*SMALL_RUN, uda("test.csv"), "tricks=[{kind: pgd, steps: 2}]"])
    train(recipe, competition, tmp_path / "run", folds=[0])
    assert len(drawn) == 2 * 3  # two epochs of 12 essays in batches of 4
    assert len(asked) == 3 * len(drawn)


def test_the_essays_are_tokenised_once_a_run_and_the_folds_draw_apart(competition, tmp_path, monkeypatch):
    tokenised, seeds, encode, begin = [], [], session.encode_essays, UDA.__init__
    monkeypatch.setattr(session, "encode_essays", lambda *given: tokenised.append(len(given[0])) or encode(*given))
    monkeypatch.setattr(UDA, "__init__", lambda *given: seeds.append(given[5]) or begin(*given))
    train(load_recipe("tiny", [*SMALL_RUN, uda("test.csv")]), competition, tmp_path / "run")
    assert tokenised == [24, 20]
    assert len(set(seeds)) == 2


def test_training_essays_will_do_and_one_fold_alone_wants_a_whole_path(competition, tmp_path):
    recipe = load_recipe("tiny", [*SMALL_RUN, uda(competition / "train.csv")])
    essays = read_essays(competition / "train.csv", recipe.data, target_of(recipe)).iloc[:20].reset_index(drop=True)
    split = make_folds(essays, recipe)[0]
    assert np.isfinite(train_fold(recipe, essays, split, tmp_path / "run").values).all()
    recipe = load_recipe("tiny", [*SMALL_RUN, uda("train.csv")])
    with pytest.raises(Fb3Error, match=r"task.uda.file=train.csv: .*absolute path"):
        train_fold(recipe, essays, split, tmp_path / "other")


def test_further_folds_want_the_same_file(competition, file, tmp_path):
    recipe = load_recipe("tiny", [*SMALL_RUN, uda(file)])
    train(recipe, competition, tmp_path / "run", folds=[0])
    file.write_text(file.read_text().replace("the", "teh"))
    with pytest.raises(Fb3Error, match=r"trained with another task\.uda\.file"):
        train(recipe, competition, tmp_path / "run", folds=[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("text_id,text\na,b\n", r"no column \['full_text'\]"),
        ("text_id,full_text\na,b\na,c\n", "1 duplicate ids in column text_id"),
        ("text_id,full_text\n", "no row below the header"),
    ],
)
def test_a_wrong_file_is_named_with_its_column_before_anything_is_written(content, words, competition, file, tmp_path):
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(Fb3Error, match=rf"task\.uda\.file: .*unlabelled\.csv: {words}"):
        train(load_recipe("tiny", [*SMALL_RUN, uda(file)]), competition, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["task.uda={augment: {mask: 0.1}}"], "task.uda.file"),
        (["task.uda={file: a.csv}"], "task.uda.augment"),
        (["task.uda={file: a.csv, augment: {}}"], "augment does nothing"),
        (["task.uda={file: a.csv, augment: {mix: 0.1, mask: 0.1}}"], "these essays have none"),
        (["task.uda={file: a.csv, augment: {mask: 0.1}, weight: 0}"], "greater than 0"),
        (["task.uda={file: a.csv, augment: {mask: 0.1}}", "model.stitch={backbone: b}"], "first encoder's tokens"),
    ],
)
def test_what_would_do_nothing_or_half_is_refused(lines, words):
    with pytest.raises(Fb3Error, match=words):
        load_recipe("tiny", lines)


def test_layers_that_drop_want_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    lines = [*TINY, uda("test.csv"), "model.layer_drop=0.1"]
    with pytest.raises(Fb3Error, match="use one process"):
        processes.open_accelerator(load_recipe("tiny", lines), tmp_path)
