"""Encoder, pooling, head."""

from typing import Annotated, Literal

from pydantic import Field

from fb3.recipe.frames import FrameModelSettings, SingleStreamSettings
from fb3.recipe.settings import Count, Probability, Settings, read_kind


class PlainPoolingSettings(Settings):
    """A pooling over the last layer's token states, without settings."""

    kind: Literal[
        "cls",
        "mean",
        "max",
        "min",
        "mean_max",
        "attention",
        "dense",
        "pooler",
        "token_weighted",
        "target_tokens",
    ] = "attention"
    """cls: first token; mean/max/min: over real tokens; mean_max: both side by side; attention: a learned weight for
    each token (Lin et al. 2017, arXiv:1703.03130); dense: the mean, a linear layer and tanh (Reimers & Gurevych 2019,
    arXiv:1908.10084); pooler: the encoder's own pooler output, where it has one; token_weighted: the mean over tokens,
    each weighted by how rare it is in the training essays (TF-IDF, Spärck Jones 1972); target_tokens: the states of the
    targets' tokens side by side, with data.text.prompt=tokens."""


class LayersPoolingSettings(Settings):
    """A pooling over several layers' token states, each layer first averaged over its real tokens."""

    kind: Literal[
        "weighted_layer",
        "concat_layers",
        "lstm_layers",
        "gru_layers",
        "attention_layers",
        "parallel_layers",
        "hierarchical_layers",
    ]
    """weighted_layer: one learned weight a layer (Peters et al. 2018, arXiv:1802.05365); concat_layers: the layers
    side by side (Devlin et al. 2018, arXiv:1810.04805, table 7); lstm_layers, gru_layers: a recurrent net over the
    layers' first tokens, from the lowest up (Song et al. 2020, arXiv:2002.04815); attention_layers: attention over the
    layers' first tokens (the same paper); parallel_layers: a small net of its own for each layer's mean, then their
    mean; hierarchical_layers: the same nets from the top down, each reading its layer and the result of the net above
    (both after Karimi et al. 2020, arXiv:2010.11731, with whole encoder layers as nets)."""
    layers: Count = 4
    """Number of layers, counted from the top."""


class GemPoolingSettings(Settings):
    """Generalised mean over real tokens (Radenovic et al. 2017, arXiv:1711.02512)."""

    kind: Literal["gem"]
    """The root of the mean of powers of the positive values: power 1 is their mean, a large one nears the maximum."""
    power: Annotated[float, Field(ge=1, le=8)] = 3.0
    """Start of the learned power."""


class LstmTokensPoolingSettings(Settings):
    """A bidirectional LSTM over the last layer's token states (Hochreiter & Schmidhuber 1997)."""

    kind: Literal["lstm_tokens"]
    """The largest value of each unit over the tokens."""
    width: Count = 128
    """Units of each direction."""


class CnnPoolingSettings(Settings):
    """Convolutions over the last layer's token states (Kim 2014, arXiv:1408.5882)."""

    kind: Literal["cnn"]
    """The largest value of each filter over the tokens."""
    width: Count = 128
    """Filters."""
    kernel: Count = 3
    """Tokens that a filter sees at once."""


_Pooling = (
    PlainPoolingSettings | LayersPoolingSettings | GemPoolingSettings | LstmTokensPoolingSettings | CnnPoolingSettings
)
# Recipes saved by earlier versions hold kernel: 3 beside lstm_tokens.
PoolingSettings = Annotated[_Pooling, Field(discriminator="kind"), read_kind(_Pooling, "attention", {"kernel": 3})]
# Poolings that read only the first token: a tokenizer must put a special one before each text.
OF_FIRST_TOKEN = {"cls", "pooler", "lstm_layers", "gru_layers", "attention_layers"}


class LinearHeadSettings(Settings):
    """One linear layer."""

    kind: Literal["linear"] = "linear"
    """A linear layer from the pooled state to the targets."""


class MultiSampleHeadSettings(Settings):
    """Multi-sample dropout (Inoue 2019, arXiv:1905.09788)."""

    kind: Literal["multi_sample_dropout"]
    """One linear layer, averaged over several dropout masks."""
    samples: Count = 5
    """Dropout masks a step."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability that a unit is dropped; 0 is refused, because it would make the samples equal."""


HeadSettings = Annotated[LinearHeadSettings | MultiSampleHeadSettings, Field(discriminator="kind")]


class ScratchSettings(Settings):
    """An encoder built from a config, with a tokenizer trained on the training essays; used by `backbone: scratch`."""

    model_type: str = "deberta-v2"
    """A transformers model type."""
    vocab_size: Annotated[int, Field(ge=64)] = 2000
    """Largest size of the WordPiece vocabulary."""
    config: dict[str, int | float | str | bool | list[str] | None] = Field(
        default={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 512,
            "relative_attention": True,
            "position_buckets": 32,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        }
    )
    """Keys of the model type's configuration class."""


class StitchSettings(Settings):
    """A second encoder beside the first: their pooled vectors side by side go to one head."""

    backbone: str
    """The second encoder: a local folder or a hub id, with its own tokenizer."""
    pooling: PoolingSettings = PlainPoolingSettings(kind="mean")
    """Pooling of the second encoder's states. On frozen encoders lstm_tokens and cnn train a net of their own."""
    frozen: Literal["none", "second", "both"] = "second"
    """The encoders that stay as they are."""


class ModelSettings(Settings):
    """Encoder, pooling, head."""

    backbone: str = "microsoft/deberta-v3-base"
    """A local folder with config.json, tokenizer and weights, a hub id, or `scratch`."""
    scratch: ScratchSettings = ScratchSettings()
    """The encoder that `backbone: scratch` builds; unused otherwise."""
    pooling: PoolingSettings = PlainPoolingSettings()
    """The way from token states to one vector."""
    stitch: StitchSettings | None = None
    """A second encoder; none: off. Tricks, freezing and re-initialisation act on the first."""
    frames: FrameModelSettings = SingleStreamSettings()
    """The way that data.frames join the text; unused without them."""
    head: HeadSettings = LinearHeadSettings()
    """The way from the vector to scores."""
    dropout: Probability = 0.0
    """Hidden dropout of the encoder; the competition's winners trained this regression without it."""
    attention_dropout: Probability = 0.0
    """Dropout of the attention probabilities."""
    freeze_embeddings: bool = False
    """Do not train the embeddings."""
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """Do not train the lowest n layers. Depths known to work: deberta-v2-xxlarge 24, deberta-v2-xlarge 12,
    deberta-large 16, deberta-xlarge 36, funnel 1 (blocks)."""
    reinit_layers: Annotated[int, Field(ge=0)] = 0
    """Start the top n layers at random: their pretrained weights serve the pretraining's task (Zhang et al. 2020,
    arXiv:2006.05987)."""
    layer_drop: Probability = 0.0
    """LayerDrop (Fan et al. 2019, arXiv:1909.11556): probability that the top layer is skipped in a training step;
    lower layers are skipped less, in proportion to their depth (Huang et al. 2016, arXiv:1603.09382). Saves no time."""
    mixout: Probability = 0.0
    """Mixout (Lee et al. 2020, arXiv:1909.11299): probability that a weight of the encoder's linear layers takes its
    start value in a training step, scaled so that the expectation is the weight. Not on reinit_layers. Costs a copy of
    these weights, and some time."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute activations in the backward pass (Chen et al. 2016, arXiv:1604.06174): a third more time, far less
    memory. auto: only once memory has run out, before a batch is computed in parts; in several processes always."""

    def second(self) -> "ModelSettings":
        """The second encoder of a stitched model, as a model of its own."""
        stitch = self.stitch
        kept = {"dropout": self.dropout, "attention_dropout": self.attention_dropout}
        return ModelSettings(
            backbone=stitch.backbone, pooling=stitch.pooling, gradient_checkpointing=self.gradient_checkpointing, **kept
        )
