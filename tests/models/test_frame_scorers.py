"""Frames beside a text: an item's scores do not depend on the others of its batch, and both modalities are read."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from fb3.models.frame_embeddings import FrameEmbeddings, with_frames
from fb3.models.frame_scorers import DualStreamScorer, SingleStreamScorer, drop_modalities
from fb3.models.heads import LinearHead
from fb3.models.poolings.build import build_pooling, build_window_pooling
from fb3.models.statistics_net import NoStatistics
from fb3.models.towers import Tower
from fb3.recipe.frames import DualStreamSettings, SingleStreamSettings
from fb3.recipe.model import ModelSettings
from tests.models.sized import sized

FAMILIES = ["bert", "roberta", "deberta-v2", "modernbert", "electra"]
WIDTH = 5


def scorer_of(kind, family="bert"):
    torch.manual_seed(0)
    encoder = sized(family)
    hidden = encoder.config.hidden_size
    pooling = build_pooling(ModelSettings().pooling, hidden, depth=1, vocabulary=50, prompt=range(0))
    tower = Tower(encoder, pooling, build_window_pooling(None, hidden))
    words = encoder.get_input_embeddings().weight
    frames = FrameEmbeddings(WIDTH, words.shape[1] if kind == "single_stream" else hidden, 6)
    if kind == "single_stream":
        scorer = SingleStreamScorer(tower, frames, SingleStreamSettings(), NoStatistics(hidden), LinearHead(hidden, 3))
    else:
        settings, width = DualStreamSettings(kind=kind, heads=2), DualStreamScorer.width(hidden, hidden)
        scorer = DualStreamScorer(tower, frames, settings, NoStatistics(width), LinearHead(width, 3))
    with torch.no_grad():
        for parameter in scorer.parameters():  # every part shows
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return scorer.eval()


def batch_of(lengths, counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, most = max(lengths), max(1, *counts)
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    seen = (torch.arange(most) < torch.tensor(counts)[:, None]).long()
    return {
        "input_ids": torch.randint(5, 50, mask.shape, generator=generator) * mask,
        "attention_mask": mask,
        "frames": torch.randn(len(counts), most, WIDTH, generator=generator) * seen[..., None],
        "frame_mask": seen,
    }


def alone(batch, row):
    tokens, count = int(batch["attention_mask"][row].sum()), max(1, int(batch["frame_mask"][row].sum()))
    cut = {name: batch[name][row : row + 1, :tokens] for name in ("input_ids", "attention_mask")}
    return cut | {name: batch[name][row : row + 1, :count] for name in ("frames", "frame_mask")}


@pytest.mark.parametrize("kind", ["single_stream", "dual_stream"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_item_scores_alone_as_in_a_batch(kind, family):
    scorer, batch = scorer_of(kind, family), batch_of([7, 2, 4, 3], [3, 0, 1, 6])
    together = scorer(batch).scores
    for row in range(4):
        torch.testing.assert_close(scorer(alone(batch, row)).scores[0], together[row], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["single_stream", "dual_stream"])
@torch.no_grad()
def test_scores_depend_on_each_frame_its_place_and_the_text(kind):
    scorer, batch = scorer_of(kind), batch_of([5, 5], [3, 3])
    plain = scorer(batch).scores
    swapped = batch | {"frames": batch["frames"].flip(1)}
    other = batch | {"frames": batch["frames"] + torch.tensor([0.0, 0.0, 1.0])[None, :, None] * torch.arange(5)}
    text = batch | {"input_ids": batch["input_ids"].flip(1)}
    for changed in (swapped, other, text):
        assert (scorer(changed).scores - plain).abs().max() > 1e-4


def test_frames_stand_behind_the_first_token_and_padding_at_the_end():
    words = torch.arange(1.0, 9).reshape(2, 4, 1)
    frames = torch.tensor([[[10.0], [20.0]], [[30.0], [40.0]]])
    mask, seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1], [1, 0]])
    packed, packed_mask = with_frames(words, mask, frames, seen)
    assert packed[0, :, 0].tolist() == [1, 10, 20, 2, 3, 4]
    assert packed_mask[0].tolist() == [1] * 6
    assert packed[1, :3, 0].tolist() == [5, 30, 6]
    assert packed_mask[1].tolist() == [1, 1, 1, 0, 0, 0]


def test_new_embeddings_have_the_size_of_word_embeddings():
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", **{"hidden_size": 32, "num_attention_heads": 2}))
    words = encoder.get_input_embeddings().weight
    frames = FrameEmbeddings(WIDTH, 32, 6)
    frames.start_like(words)
    frames.fit(np.random.default_rng(0).normal(7, 40, (99, WIDTH)))
    assert frames(torch.randn(8, 6, WIDTH) * 40 + 7).std().item() == pytest.approx(words.std().item(), rel=0.1)


def test_modality_dropout_takes_the_text_or_the_frames_from_its_share_of_items():
    torch.manual_seed(0)
    lengths, counts = [2, 5, 7, 4], [1, 3, 2, 0]
    batch = batch_of(lengths * 1000, counts * 1000)
    left = drop_modalities(batch, 0.3)
    text, frames = left["attention_mask"].sum(1), left["frame_mask"].sum(1)
    no_text = (text == 2) & (torch.tensor(lengths * 1000) > 2)
    assert no_text.reshape(-1, 4).float().mean(0).tolist() == pytest.approx([0, 0.15, 0.15, 0], abs=0.03)
    no_frames = (frames == 0) & (torch.tensor(counts * 1000) > 0)
    assert no_frames.reshape(-1, 4).float().mean(0).tolist() == pytest.approx([0.15, 0.15, 0.15, 0], abs=0.03)
    assert not (no_text & no_frames).any()
    for row in no_text.nonzero()[:20, 0].tolist():
        ids, whole = left["input_ids"][row], batch["input_ids"][row]
        assert ids[:2].tolist() == [whole[0], whole[lengths[row % 4] - 1]]
    kept = ~no_text & ~no_frames
    for name, value in batch.items():
        assert torch.equal(left[name][kept], value[kept])
    assert drop_modalities(batch, 0.0) is batch


@pytest.mark.parametrize("kind", ["single_stream", "dual_stream"])
@torch.no_grad()
def test_an_item_without_its_text_scores_as_an_empty_one(kind):
    scorer, batch = scorer_of(kind), batch_of([6, 5], [3, 2])
    for module in (scorer, *scorer.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    scorer.modality_dropout, found = 1.0, set()
    empty = alone(batch, 0) | {"input_ids": batch["input_ids"][:1, [0, 5]], "attention_mask": torch.ones(1, 2).long()}
    no_frames = alone(batch, 0) | {"frame_mask": torch.zeros(1, 3).long()}
    wanted = [scorer(each).scores for each in (empty, no_frames)]
    for seed in range(8):
        torch.manual_seed(seed)
        scorer.training = True
        scores = scorer(alone(batch, 0)).scores
        scorer.training = False
        distances = [float((scores - each).abs().max()) for each in wanted]
        assert min(distances) < 1e-5
        found.add(distances.index(min(distances)))
    assert found == {0, 1}
