"""Poolings: token states to one vector an essay, each by its kind."""

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
from fb3.recipe.model import (
    FittedPoolingSettings,
    GemPoolingSettings,
    PlainPoolingSettings,
    PoolingSettings,
    TokensPoolingSettings,
)

__all__ = ["Pooling", "build_pooling", "build_window_pooling"]

_PLAIN = {
    "cls": ClsPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
    "min": MinPooling,
    "mean_max": MeanMaxPooling,
    "attention": AttentionPooling,
    "dense": DensePooling,
    "pooler": PoolerPooling,
}
_LAYERED = {
    "weighted_layer": WeightedLayerPooling,
    "concat_layers": ConcatLayersPooling,
    "lstm_layers": lambda hidden, layers: RecurrentLayersPooling(hidden, layers, nn.LSTM),
    "gru_layers": lambda hidden, layers: RecurrentLayersPooling(hidden, layers, nn.GRU),
    "attention_layers": AttentionLayersPooling,
    "parallel_layers": ParallelLayersPooling,
    "hierarchical_layers": HierarchicalLayersPooling,
}


def build_pooling(
    settings: PoolingSettings, hidden: int, depth: int, *, vocabulary: int = 0, prompt: range = range(0)
) -> Pooling:
    """The pooling of a recipe.

    Args:
        settings: its kind and settings.
        hidden: width D of the encoder.
        depth: layers of the encoder.
        vocabulary: number of its word embeddings.
        prompt: positions of the targets' tokens.

    Raises:
        Fb3Error: more layers are asked for than the encoder has.
    """
    match settings:
        case PlainPoolingSettings():
            return _PLAIN[settings.kind](hidden)
        case GemPoolingSettings():
            return GeneralisedMeanPooling(hidden, settings.power)
        case TokensPoolingSettings(kind="cnn"):
            return CnnPooling(hidden, settings.width, settings.kernel)
        case TokensPoolingSettings():
            return LstmTokensPooling(hidden, settings.width)
        case FittedPoolingSettings(kind="token_weighted"):
            return TokenWeightedPooling(hidden, vocabulary)
        case FittedPoolingSettings():
            return TargetTokensPooling(hidden, prompt)
    if settings.layers > depth:
        raise Fb3Error(f"model.pooling.layers={settings.layers}: the encoder has {depth} layers; give at most {depth}")
    return _LAYERED[settings.kind](hidden, settings.layers)


def build_window_pooling(windows: WindowsSettings | None, width: int) -> nn.Module:
    """What makes one vector of an essay's windows, each of `width`; without windows, nothing."""
    return WindowPooling(_PLAIN[windows.pool](width)) if windows else SingleWindow()
