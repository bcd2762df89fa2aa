"""Poolings: token states to one vector an essay, each by its kind."""

from torch import nn

from fb3.errors import Fb3Error
from fb3.models.poolings.base import Pooling
from fb3.models.poolings.layers import (
    AttentionLayersPooling,
    ConcatLayersPooling,
    RecurrentLayersPooling,
    WeightedLayerPooling,
)
from fb3.models.poolings.nets import CnnPooling, LstmTokensPooling
from fb3.models.poolings.tokens import (
    AttentionPooling,
    ClsPooling,
    DensePooling,
    GeneralisedMeanPooling,
    MaxPooling,
    MeanMaxPooling,
    MeanPooling,
    MinPooling,
    PoolerPooling,
)
from fb3.recipe.groups import GemPooling, LayersPooling, PlainPooling, TokensPooling

__all__ = ["Pooling", "build_pooling"]

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
}


def build_pooling(
    settings: PlainPooling | LayersPooling | GemPooling | TokensPooling, hidden: int, depth: int
) -> Pooling:
    """The pooling of a recipe.

    Args:
        settings: its kind and settings.
        hidden: width D of the encoder.
        depth: layers of the encoder.

    Raises:
        Fb3Error: more layers are asked for than the encoder has.
    """
    if isinstance(settings, PlainPooling):
        return _PLAIN[settings.kind](hidden)
    if isinstance(settings, GemPooling):
        return GeneralisedMeanPooling(hidden, settings.power)
    if isinstance(settings, TokensPooling):
        if settings.kind == "cnn":
            return CnnPooling(hidden, settings.width, settings.kernel)
        return LstmTokensPooling(hidden, settings.width)
    if settings.layers > depth:
        raise Fb3Error(f"model.pooling.layers={settings.layers}: the encoder has {depth} layers; give at most {depth}")
    return _LAYERED[settings.kind](hidden, settings.layers)
