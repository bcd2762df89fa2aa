"""The table of poolings: token states to one vector an essay, by kind."""

from collections.abc import Callable
from functools import partial

from torch import nn

from fb3.errors import Fb3Error
from fb3.models.poolings.layer_poolings import (
    AttentionLayersPooling,
    ConcatLayersPooling,
    HierarchicalLayersPooling,
    ParallelLayersPooling,
    RecurrentLayersPooling,
    WeightedLayerPooling,
)
from fb3.models.poolings.net_poolings import CnnPooling, LstmTokensPooling
from fb3.models.poolings.pooling import Pooling
from fb3.models.poolings.token_poolings import (
    AttentionPooling,
    ClsPooling,
    DensePooling,
    GeneralisedMeanPooling,
    MaxPooling,
    MeanMaxPooling,
    MeanPooling,
    MinPooling,
    PoolerPooling,
    TargetTokensPooling,
    TokenWeightedPooling,
)
from fb3.models.poolings.window_pooling import SingleWindow, WindowPooling
from fb3.recipe.data import WindowsSettings
from fb3.recipe.model import PoolingSettings

# Each is built from the encoder's width and its settings by name; `kind` alone is left out.
POOLINGS: dict[str, Callable[..., Pooling]] = {
    "cls": ClsPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
    "min": MinPooling,
    "mean_max": MeanMaxPooling,
    "attention": AttentionPooling,
    "dense": DensePooling,
    "pooler": PoolerPooling,
    "token_weighted": TokenWeightedPooling,
    "target_tokens": TargetTokensPooling,
    "weighted_layer": WeightedLayerPooling,
    "concat_layers": ConcatLayersPooling,
    "lstm_layers": partial(RecurrentLayersPooling, net=nn.LSTM),
    "gru_layers": partial(RecurrentLayersPooling, net=nn.GRU),
    "attention_layers": AttentionLayersPooling,
    "parallel_layers": ParallelLayersPooling,
    "hierarchical_layers": HierarchicalLayersPooling,
    "gem": GeneralisedMeanPooling,
    "lstm_tokens": LstmTokensPooling,
    "cnn": CnnPooling,
}


def build_pooling(
    settings: PoolingSettings, hidden: int, depth: int, *, vocabulary: int = 0, prompt: range = range(0)
) -> Pooling:
    """The pooling of a recipe, for an encoder of width `hidden` with `depth` layers and `vocabulary` word embeddings.

    `prompt` holds the positions of the targets' tokens. An Fb3Error where more layers are wanted than there are.
    """
    own = settings.model_dump(exclude={"kind"})
    if own.get("layers", 0) > depth:
        mend = f"give at most {depth}" if depth else "take a kind that reads no layers, such as lstm_tokens or cnn"
        raise Fb3Error(f"model.pooling.layers={own['layers']}: the encoder has {depth} layers; {mend}")
    own |= {"token_weighted": {"vocabulary": vocabulary}, "target_tokens": {"prompt": prompt}}.get(settings.kind, {})
    return POOLINGS[settings.kind](hidden, **own)


def build_window_pooling(windows: WindowsSettings | None, width: int) -> nn.Module:
    """The module that makes one vector of an essay's windows, each of `width`; without windows it does nothing."""
    return WindowPooling(POOLINGS[windows.pool](width)) if windows else SingleWindow()
