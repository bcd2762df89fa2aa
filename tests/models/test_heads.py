import pytest
import torch

from fb3.models.heads import HEADS, build_head
from fb3.recipe.model import HeadSettings, MultiSampleHeadSettings
from fb3.recipe.settings import kinds


def test_every_kind_of_the_recipe_is_in_the_table():
    assert list(HEADS) == list(kinds(HeadSettings))


@pytest.mark.parametrize("kind", HEADS)
def test_the_first_predictions_are_the_means(kind):
    head = build_head(kinds(HeadSettings)[kind](kind=kind), 64, 2).eval()
    means = torch.tensor([3.0, 2.5])
    head.start_at(means)
    assert (head(torch.randn(10, 64)) - means).abs().max() < 0.1


def test_multi_sample_dropout_is_the_mean_of_masks_and_linear_at_inference():
    head = build_head(MultiSampleHeadSettings(kind="multi_sample_dropout", samples=3), 8, 2)
    pooled = torch.randn(4, 8)
    torch.manual_seed(1)
    together = head.train()(pooled)
    torch.manual_seed(1)
    apart = torch.stack([head.linear(head.dropout(pooled)) for _ in range(3)]).mean(0)
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(head.eval()(pooled), head.linear(pooled))
