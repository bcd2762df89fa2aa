"""Every trick on a tiny real encoder: what it does by itself, and in a run."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.recipe import load_recipe
from fb3.recipe.settings import kinds
from fb3.recipe.tricks import (
    AwpSettings,
    EmaSettings,
    FgmSettings,
    GradualUnfreezeSettings,
    LookaheadSettings,
    NoiseSettings,
    PgdSettings,
    PullToStartSettings,
    SwaSettings,
    TrickSettings,
)
from fb3.targets.metrics import Score
from fb3.tasks.base import Recorder
from fb3.tasks.build import build_task
from fb3.tasks.momentum_distillation import MomentumDistillation
from fb3.tasks.r_drop import RDrop
from fb3.training.tricks.averaging import EMA, SWA
from fb3.training.tricks.awp import AWP
from fb3.training.tricks.build import TRICKS, build_tricks
from fb3.training.tricks.fgm import FGM
from fb3.training.tricks.lookahead import Lookahead
from fb3.training.tricks.noise import EmbeddingNoise
from fb3.training.tricks.pgd import PGD
from fb3.training.tricks.pull_to_start import L2SP
from fb3.training.tricks.trick import Step
from fb3.training.tricks.unfreeze import GradualUnfreeze


@pytest.fixture
def step(run, tiny):
    torch.manual_seed(0)
    scorer = build_scorer(tiny, run / "encoder", init="config")
    ids = torch.randint(5, 100, (3, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": torch.rand(3, 6) * 4 + 1}
    return Step(scorer, batch)


def backward_of(step, tiny, seen=None):
    def backward():
        if seen is not None:
            seen.append(step.scorer.encoder.get_input_embeddings().weight.detach().clone())
        out = build_task(tiny).loss(step.scorer, step.batch)
        out.loss.backward()
        return out

    return backward


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_fgm_moves_by_its_norm_along_the_gradient_and_restores_bit_for_bit(step, tiny, epsilon):
    weight = step.scorer.encoder.get_input_embeddings().weight
    before = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    seen = []
    clean = backward_of(step, tiny)
    clean()
    gradient = weight.grad.clone()
    step.scorer.zero_grad()
    FGM(FgmSettings(kind="fgm", epsilon=epsilon), step.scorer).backward(step, backward_of(step, tiny, seen))
    assert len(seen) == 2
    move = seen[1] - seen[0]
    assert move.norm().item() == pytest.approx(epsilon, rel=1e-4)
    torch.testing.assert_close(move, epsilon * gradient / gradient.norm(), atol=1e-5, rtol=1e-3)
    for name, p in step.scorer.named_parameters():
        assert torch.equal(p, before[name]), name


def test_fgm_adds_the_gradient_at_the_moved_embeddings(step, tiny):
    moved = copy.deepcopy(step.scorer)
    FGM(FgmSettings(kind="fgm"), step.scorer).backward(step, backward_of(step, tiny))
    both = {name: p.grad.clone() for name, p in step.scorer.named_parameters() if p.grad is not None}
    other = Step(moved, step.batch)
    backward_of(other, tiny)()
    first = {name: p.grad.clone() for name, p in moved.named_parameters() if p.grad is not None}
    weight = moved.encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight.add_(weight.grad / weight.grad.norm())
    moved.zero_grad()
    backward_of(other, tiny)()
    second = {name: p.grad for name, p in moved.named_parameters() if p.grad is not None}
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, first[name] + second[name], atol=1e-5, rtol=1e-3)
    name = "head.linear.weight"
    assert not torch.allclose(second[name], first[name])


def test_fgm_restores_after_an_error(step, tiny):
    weight = step.scorer.encoder.get_input_embeddings().weight
    before = weight.detach().clone()
    backward_of(step, tiny)()
    with pytest.raises(RuntimeError), FGM(FgmSettings(kind="fgm"), step.scorer).perturbed(step):
        raise RuntimeError
    assert torch.equal(weight, before)


def test_fgm_without_a_gradient_is_an_error_not_a_silence(step):
    with pytest.raises(Fb3Error, match="no gradient"), FGM(FgmSettings(kind="fgm"), step.scorer).perturbed(step):
        pass


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_fgm_moves_nothing_along_a_gradient_without_direction(step, value):
    weight = step.scorer.encoder.get_input_embeddings().weight
    weight.grad = torch.full_like(weight, value)
    before = weight.detach().clone()
    with FGM(FgmSettings(kind="fgm"), step.scorer).perturbed(step):
        assert torch.equal(weight, before)


@given(decay=st.floats(0.01, 0.999), values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_ema_is_its_closed_form(decay, values):
    scorer = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(EmaSettings(kind="ema", decay=decay), scorer)
    for value in values:
        torch.nn.init.constant_(scorer.weight, value)
        ema.after_step(Step(scorer, {}))
    expected = values[0]
    for value in values[1:]:
        expected = decay * expected + (1 - decay) * value
    assert ema.average.module.weight.item() == pytest.approx(expected, abs=1e-4)


def test_ema_swaps_in_and_out_bit_for_bit(step):
    ema = EMA(EmaSettings(kind="ema", decay=0.5), step.scorer)
    ema.after_step(step)
    start = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    with torch.no_grad():
        for p in step.scorer.parameters():
            p.add_(1.0)
    ema.after_step(step)
    live = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    with ema.eval_weights(step):
        for name, p in step.scorer.named_parameters():
            torch.testing.assert_close(p, start[name] + 0.5)
    for name, p in step.scorer.named_parameters():
        assert torch.equal(p, live[name])


def gradients(scorer):
    return {name: p.grad.clone() for name, p in scorer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("steps", [1, 3])
def test_pgd_stays_in_its_ball_adds_the_last_gradient_and_restores(step, tiny, steps):
    before = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    plain = copy.deepcopy(step.scorer)
    backward_of(Step(plain, step.batch), tiny)()
    seen = []
    pgd = PGD(PgdSettings(kind="pgd", epsilon=0.5, alpha=0.3, steps=steps), step.scorer)
    pgd.backward(step, backward_of(step, tiny, seen))
    assert len(seen) == 1 + steps
    moves = [(weight - seen[0]).norm().item() for weight in seen[1:]]
    assert moves[0] == pytest.approx(0.3, rel=1e-4)
    assert max(moves) <= 0.5 + 1e-5
    for name, p in step.scorer.named_parameters():
        assert torch.equal(p, before[name]), name
    with torch.no_grad():
        plain.encoder.get_input_embeddings().weight.copy_(seen[-1])
    first = gradients(plain)
    plain.zero_grad()
    backward_of(Step(plain, step.batch), tiny)()
    for name, gradient in gradients(step.scorer).items():
        torch.testing.assert_close(gradient, first[name] + gradients(plain)[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("form", ["two_pass", "perturb_first"])
def test_awp_moves_matrices_within_bounds_and_restores(step, tiny, form):
    before = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    at = []

    def backward():
        at.append({name: p.detach().clone() for name, p in step.scorer.named_parameters()})
        out = build_task(tiny).loss(step.scorer, step.batch)
        out.loss.backward()
        return out

    settings = AwpSettings(kind="awp", rate=0.1, epsilon=0.02, from_epoch=0, form=form)
    AWP(settings, step.scorer).backward(step, backward)
    moved = [name for name in before if not torch.equal(at[1][name], before[name])]
    assert moved
    for name in moved:
        assert name.startswith("encoder.")
        assert before[name].ndim > 1
        assert ((at[1][name] - before[name]).abs() <= 0.02 * before[name].abs() + 1e-8).all()
    for name, p in step.scorer.named_parameters():
        assert torch.equal(p, before[name]), name
    there = copy.deepcopy(step.scorer)
    with torch.no_grad():
        for name, p in there.named_parameters():
            p.copy_(at[1][name])
    there.zero_grad()
    backward_of(Step(there, step.batch), tiny)()
    plain = copy.deepcopy(step.scorer)
    plain.zero_grad()
    backward_of(Step(plain, step.batch), tiny)()
    for name, gradient in gradients(step.scorer).items():
        wanted = gradients(there)[name] + (gradients(plain)[name] if form == "two_pass" else 0)
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3)


def test_awp_waits_for_its_epoch_and_its_score(step, tiny):
    def passes(epoch, score, **settings):
        seen = []
        step.epoch, step.score = epoch, None if score is None else Score(score, {})
        AWP(AwpSettings(kind="awp", **settings), step.scorer).backward(step, backward_of(step, tiny, seen))
        return len(seen)

    assert passes(0, None, from_epoch=1) == 1
    assert passes(1, None, from_epoch=1) == 2
    assert passes(1, None, from_epoch=0, from_score=0.5) == 1
    assert passes(1, 0.6, from_epoch=0, from_score=0.5) == 1
    assert passes(1, 0.4, from_epoch=0, from_score=0.5) == 2


def test_noise_changes_the_loss_and_leaves_no_hook(step, tiny):
    noise = EmbeddingNoise(NoiseSettings(kind="noise", scale=0.5), step.scorer)
    torch.manual_seed(0)
    one, two = (noise.backward(step, backward_of(step, tiny)).loss.item() for _ in range(2))
    assert one != two
    plain = backward_of(step, tiny)().loss.item()
    assert plain == backward_of(step, tiny)().loss.item()
    assert not step.scorer.encoder.get_input_embeddings()._forward_hooks


def test_swa_is_the_mean_of_its_moments_and_waits(step):
    scorer = torch.nn.Linear(1, 1, bias=False)
    swa = SWA(SwaSettings(kind="swa", start=0.5, every_steps=2), scorer)
    kept = []
    for number in range(10):
        torch.nn.init.constant_(scorer.weight, float(number))
        here = Step(scorer, {}, number=number, progress=number / 10)
        if not kept:
            with swa.eval_weights(here):
                assert scorer.weight.item() == number, "the live weights until the first moment"
        swa.after_step(here)
        if number in {5, 7, 9}:
            kept.append(number)
    assert swa.moments(10) == len(kept)
    with swa.eval_weights(Step(scorer, {})):
        assert scorer.weight.item() == pytest.approx(7.0)
    assert scorer.weight.item() == 9.0


def test_ema_may_start_late():
    scorer = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(EmaSettings(kind="ema", decay=0.5, start=0.5), scorer)
    for number in range(10):
        torch.nn.init.constant_(scorer.weight, float(number))
        ema.after_step(Step(scorer, {}, number=number, progress=number / 10))
    expected = 5.0
    for value in (6.0, 7.0, 8.0, 9.0):
        expected = 0.5 * expected + 0.5 * value
    assert ema.average.module.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "task",
    [["task.loss=mse"], ["task={kind: classification, classes: [a, b]}", "data.target_columns=[x]", "metric=log_loss"]],
)
def test_an_average_teaches_by_its_predictions(task, run):
    recipe = load_recipe("tiny", [*task, "model.dropout=0.5"])
    torch.manual_seed(0)
    scorer, task = build_scorer(recipe, run / "encoder", init="config"), build_task(recipe)
    ema, asked = EMA(EmaSettings(kind="ema", decay=0.5, teach=0.4), scorer), []

    def teacher(batch):
        asked.append(ema.average.eval()(batch) if ema.waited else None)
        return asked[-1]

    wrapped = MomentumDistillation(task, teacher, 0.4, ramp=0.25)
    ids = torch.randint(5, 100, (3, 12))
    truth = torch.eye(2)[[0, 1, 1]] if task.target.exclusive else torch.rand(3, 6) * 4 + 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "targets": truth}
    recorded = Recorder(scorer)
    out = wrapped.loss(recorded, batch | {"progress": torch.tensor(0.0)})
    torch.testing.assert_close(out.loss, task.loss(lambda _: recorded.outputs[0], batch).loss)
    assert asked == [None]  # it has not begun
    ema.after_step(Step(scorer, {}))
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for progress, share in ((0.0, 0.0), (0.125, 0.2), (0.25, 0.4), (0.9, 0.4)):
        out = wrapped.loss(recorded, batch | {"progress": torch.tensor(progress)})
        scores, taught = recorded.outputs[-1].scores, asked[-1].scores
        assert torch.equal(taught, ema.average.module.eval()(batch).scores)  # no dropout, and always the same
        assert not taught.requires_grad
        if task.target.exclusive:
            losses = [-(t * scores.log_softmax(-1)).sum(-1).mean() for t in (truth, taught.softmax(-1))]
        else:
            losses = [((t - scores) ** 2).mean() for t in (truth, taught)]
        torch.testing.assert_close(out.loss, (1 - share) * losses[0] + share * losses[1])
        torch.testing.assert_close(out.logs["momentum"], losses[1].detach())
    out.loss.backward()
    assert all(parameter.grad is None for parameter in ema.average.parameters())


@pytest.mark.parametrize("other", ["task.r_drop={alpha: 1.0}", "task.uda={file: u.csv, augment: {mask: 0.1}}"])
def test_an_average_that_teaches_is_the_only_one_to_add_to_the_loss(other):
    with pytest.raises(Fb3Error, match=r"ema\.teach and task"):
        load_recipe("tiny", ["tricks=[{kind: ema, teach: 0.4}]", "model.dropout=0.1", other])


def test_the_pull_goes_a_share_of_the_way_back(step):
    start = {name: p.detach().clone() for name, p in step.scorer.named_parameters()}
    pull = L2SP(PullToStartSettings(kind="pull_to_start", strength=0.25), step.scorer)
    with torch.no_grad():
        for p in step.scorer.parameters():
            p.add_(1.0)
    pull.after_step(step)
    for name, p in step.scorer.named_parameters():
        torch.testing.assert_close(p, start[name] + (0.75 if name.startswith("encoder.") else 1.0))


@given(
    steps=st.integers(2, 4),
    alpha=st.floats(0.01, 0.99),
    moves=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=9),
)
@settings(max_examples=50, deadline=None)
def test_lookahead_is_its_closed_form(steps, alpha, moves):
    """After each cycle slow = start + alpha · the way of the cycles so far; between, the fast weights go their own."""
    scorer = torch.nn.Linear(1, 2).double()
    scorer.bias.requires_grad_(False)
    start = scorer.weight.detach().clone()
    trick = Lookahead(LookaheadSettings(kind="lookahead", steps=steps, alpha=alpha), scorer)
    for number, move in enumerate(moves, 1):
        with torch.no_grad():
            scorer.weight.add_(move)
            scorer.bias.fill_(number)
        trick.after_step(Step(scorer, {}))
        whole = number - number % steps
        expected = start + alpha * sum(moves[:whole]) + sum(moves[whole:number])
        torch.testing.assert_close(scorer.weight.detach(), expected, rtol=0, atol=1e-12)
        assert (scorer.bias == number).all(), "a frozen weight is left alone"


def test_lookahead_that_keeps_the_whole_way_changes_nothing(step):
    whole = LookaheadSettings.model_construct(kind="lookahead", steps=2, alpha=1.0)  # the recipe would refuse it
    trick = Lookahead(whole, step.scorer)
    for _ in range(4):
        with torch.no_grad():
            for p in step.scorer.parameters():
                p.add_(torch.randn_like(p))
        before = [p.detach().clone() for p in step.scorer.parameters()]
        trick.after_step(step)
        assert all(torch.equal(p, old) for p, old in zip(step.scorer.parameters(), before, strict=True))


def test_a_lookahead_that_would_never_return_is_refused(step):
    recipe = load_recipe("tiny", ["tricks=[{kind: lookahead, steps: 6}]"])
    with pytest.raises(Fb3Error, match="returns every 6 steps, and the run has 5"):
        build_tricks(recipe, step.scorer, 5)
    assert len(build_tricks(recipe, step.scorer, 6)) == 1


def test_layers_unfreeze_from_the_top_down(step, tiny):
    unfreeze = GradualUnfreeze(GradualUnfreezeSettings(kind="gradual_unfreeze", until=0.5), step.scorer)
    trained = []
    for progress in (0.0, 0.2, 0.4, 0.5, 1.0):
        step.scorer.zero_grad()
        step.progress = progress
        unfreeze.backward(step, backward_of(step, tiny))
        trained.append({depth for p, depth in unfreeze.depths if p.grad is not None})
        assert step.scorer.head.linear.weight.grad is not None
    assert trained == [set(), {2}, {1, 2}, {0, 1, 2}, {0, 1, 2}]


def test_r_drop_is_nothing_without_dropout_and_something_with_it(step, tiny):
    def term(dropout):
        for module in step.scorer.modules():
            if hasattr(module, "p") or hasattr(module, "drop_prob"):
                module.p = module.drop_prob = dropout
        step.scorer.train()
        return RDrop(build_task(tiny), 1.0).loss(step.scorer, step.batch).logs["r_drop"].item()

    assert term(0.0) == 0.0
    assert term(0.3) > 1e-9


def test_every_kind_of_the_recipe_is_in_the_table():
    assert set(TRICKS) == set(kinds(TrickSettings))


@pytest.mark.parametrize("kind", [kind for kind, settings in kinds(TrickSettings).items() if settings.on_encoder])
def test_on_a_frozen_encoder_it_is_refused(kind, step):
    step.scorer.encoder.requires_grad_(False)
    chosen = "{kind: awp, from_epoch: 0}" if kind == "awp" else f"{{kind: {kind}}}"
    recipe = load_recipe("tiny", [f"tricks=[{chosen}]", "optimizer.weight_decay=0"])
    with pytest.raises(Fb3Error, match=f"{kind} acts on the encoder's weights, which are all frozen"):
        build_tricks(recipe, step.scorer, 100)


def test_an_average_of_fewer_than_two_moments_is_refused(step):
    recipe = load_recipe("tiny", ["tricks=[{kind: swa, start: 0.6, every_steps: 50}]"])
    with pytest.raises(Fb3Error, match="swa has 1 moments in 100 steps"):
        build_tricks(recipe, step.scorer, 100)
    assert len(build_tricks(recipe, step.scorer, 200)) == 1


def test_the_order_in_the_recipe_does_not_matter(step):
    written = "tricks=[{kind: ema}, {kind: lookahead}, {kind: pull_to_start}, {kind: fgm}, {kind: gradual_unfreeze}]"
    tricks = build_tricks(load_recipe("tiny", [written, "optimizer.weight_decay=0"]), step.scorer, 100)
    assert [type(trick).__name__ for trick in tricks] == ["GradualUnfreeze", "FGM", "L2SP", "Lookahead", "EMA"]
