"""The groups of a recipe: typed, frozen, every field with its unit and source.

No torch here: `fb3 recipes` and a notebook that only writes a recipe must not wait for it. A group whose pieces are
chosen by kind (poolings, heads, losses, schedules, tricks) is a union told apart by `kind`; the builder of each floor
maps the kind to its class.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Group(BaseModel):
    """Settings that belong together: unknown keys are refused, values cannot change once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

# --- model ---


class PlainPooling(Group):
    """A pooling over the last layer's token states without settings."""

    kind: Literal["cls", "mean", "max", "min", "attention", "pooler"] = "attention"
    """cls: first token; mean/max/min: over real tokens; attention: a learned weight for each token (Lin et al. 2017,
    arXiv:1703.03130); pooler: the encoder's own pooler output, where it has one."""


class LayersPooling(Group):
    """A pooling over several layers' token states, each averaged over its real tokens."""

    kind: Literal["weighted_layer", "concat_layers"]
    """weighted_layer: one learned weight a layer (Peters et al. 2018, arXiv:1802.05365); concat_layers: the layers
    side by side (Devlin et al. 2018, arXiv:1810.04805, table 7)."""
    layers: Count = 4
    """How many of the last layers are taken."""


Pooling = Annotated[PlainPooling | LayersPooling, Field(discriminator="kind")]


class LinearHead(Group):
    """One linear layer."""

    kind: Literal["linear"] = "linear"
    """A linear layer from the pooled state to the targets."""


class MultiSampleHead(Group):
    """Multi-sample dropout (Inoue 2019, arXiv:1905.09788)."""

    kind: Literal["multi_sample_dropout"]
    """One linear layer, averaged over several dropout masks."""
    samples: Count = 5
    """Dropout masks a step."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability of a unit to be dropped; 0 would make the samples equal, so it is refused."""


Head = Annotated[LinearHead | MultiSampleHead, Field(discriminator="kind")]


class Scratch(Group):
    """An encoder built from a config, with a tokenizer trained on the training essays; used by `backbone: scratch`."""

    model_type: str = "deberta-v2"
    """A transformers model type."""
    vocab_size: Annotated[int, Field(ge=64)] = 2000
    """Largest size of the WordPiece vocabulary."""
    config: dict[str, int | float | str | bool | list[str] | None] = {
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
    """Keys of the model type's configuration class."""


class ModelGroup(Group):
    """Encoder, pooling, head."""

    backbone: str = "microsoft/deberta-v3-base"
    """A local folder with config.json, tokenizer and weights, a hub id, or `scratch`."""
    scratch: Scratch = Scratch()
    """What `backbone: scratch` builds; unused otherwise."""
    pooling: Pooling = PlainPooling()
    """How token states become one vector."""
    head: Head = LinearHead()
    """How the vector becomes scores."""
    dropout: Probability = 0.0
    """Hidden dropout of the encoder; 0 is what won on this regression."""
    attention_dropout: Probability = 0.0
    """Dropout of the attention probabilities."""
    freeze_embeddings: bool = False
    """Keep the embeddings as they are."""
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """Keep the lowest n layers as they are. Depths known to work: deberta-v2-xxlarge 24, deberta-v2-xlarge 12,
    deberta-large 16, deberta-xlarge 36, funnel 1 (blocks)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (Chen et al. 2016, arXiv:1604.06174): a third more time, far less
    memory."""


# --- data ---


class DataGroup(Group):
    """The competition's files and how a text becomes tokens."""

    id_column: str = "text_id"
    """Column of the essay's id."""
    text_column: str = "full_text"
    """Column of the essay's text."""
    target_columns: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "cohesion",
        "syntax",
        "vocabulary",
        "phraseology",
        "grammar",
        "conventions",
    )
    """Columns of the scores, in the order of the submission."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Longest input in tokens, special tokens included; longer essays are truncated."""
    truncation: Literal["head", "tail", "head_tail"] = "head"
    """Which tokens of a long essay stay: the first, the last, or half of each (Sun et al. 2019, arXiv:1905.05583)."""
    sample: Count | None = None
    """Use only so many essays, drawn with folds.seed; none: all."""

    @model_validator(mode="after")
    def _distinct_columns(self) -> "DataGroup":
        names = [self.id_column, self.text_column, *self.target_columns]
        if len(set(names)) < len(names):
            raise ValueError(f"id_column, text_column and target_columns must differ, got {names}")
        if reserved := [n for n in names if n == "fold" or n.startswith("true_")]:
            raise ValueError(f"{reserved}: these names belong to oof.csv; rename the columns")
        return self


class FoldsGroup(Group):
    """The split (Sechidis et al. 2011, iterative stratification on all target columns)."""

    count: Annotated[int, Field(ge=2)] = 4
    """Number of folds. A `fold` column in train.csv is honoured instead."""
    seed: Seed = 42
    """Seed of the split."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the essays held out in one single split, instead of folds."""


# --- training ---


class TrainGroup(Group):
    """The loop."""

    epochs: Count = 5
    """Passes over the training essays."""
    batch_size: Count = 8
    """Essays a batch, over all processes together."""
    accumulation: Count = 1
    """Batches whose gradients are added up before one optimizer step."""
    seed: Seed = 42
    """Seed of the weights, the dropout and the order of batches; fold f uses seed + f."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Mixed precision; auto: bf16 where the chip really does it, fp16 on older GPUs, else fp32."""
    evaluate_every_steps: Count | None = None
    """Evaluate after every so many optimizer steps too, not only at the end of each epoch."""
    broken_gpu: Literal["cpu", "stop"] = "stop"
    """A GPU for which torch has no kernels: stop, or go on with the CPU."""
    keep: Literal["best", "all"] = "best"
    """Which evaluations leave a checkpoint in the fold folder."""
    log_every_steps: Count = 20
    """Optimizer steps in a window, one log line each."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Experiment trackers beside log.jsonl, through accelerate; wandb stays offline unless Kaggle's secrets hold
    WANDB_API_KEY."""


class OptimizerGroup(Group):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) and its parameter groups."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer."""
    encoder_rate: Rate = 5e-5
    """Peak learning rate of the encoder's top layer."""
    head_rate: Rate = 5e-5
    """Peak learning rate of pooling and head. Small encoders want more than their encoder rate."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each lower layer's rate is this times the one above (Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020,
    arXiv:2003.10555)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; none on biases and normalisation weights."""
    eps: Rate = 1e-6
    """Added to the root of Adam's second moment."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    clip: Rate = 1000.0
    """Largest norm of all gradients together."""
    unscale: bool = True
    """Take fp16's loss scale out of the gradients before clipping. False reproduces published runs that clipped the
    scaled gradients; it changes nothing outside fp16."""


class ScheduleGroup(Group):
    """The learning rate over the run, counted in optimizer steps."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up (cosine: Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    warmup_share: Share = 0.0
    """The same as a share of all steps; give one of the two."""
    cycles: Annotated[float, Field(gt=0)] = 0.5
    """Waves of the cosine; 0.5 falls once from the peak to 0."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleGroup":
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give warmup_steps or warmup_share, not both")
        if self.cycles != 0.5 and self.kind != "cosine":
            raise ValueError(f"cycles does nothing in a {self.kind} schedule; leave it out or take kind: cosine")
        return self


class RegressionTask(Group):
    """Scores on a continuous scale."""

    kind: Literal["regression"] = "regression"
    """What a target is."""
    loss: Literal["smooth_l1", "mse", "rmse"] = "smooth_l1"
    """smooth_l1: Huber with beta 1 (Girshick 2015, arXiv:1504.08083); rmse: the root of the batch's mean."""
    minimum: float = 1.0
    """Lowest score; predictions are clipped to it."""
    maximum: float = 5.0
    """Highest score."""

    @model_validator(mode="after")
    def _ordered(self) -> "RegressionTask":
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} must lie below maximum {self.maximum}")
        return self


class PredictGroup(Group):
    """Inference, out of fold and on the test essays alike."""

    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens a batch, padding included; none: 4,096 on a CPU, 16,384 on a GPU."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of the encoder on test essays; auto: by what the chip there really does, as in train.precision."""
    broken_gpu: Literal["cpu", "stop"] = "cpu"
    """A GPU for which torch has no kernels: go on with the CPU, or stop."""
    limit_hours: Rate = 9.0
    """The competition's limit for a submission, in hours; inference is done 5 % earlier."""


# --- tricks ---


class Fgm(Group):
    """Fast gradient method on the word embeddings (Miyato et al. 2016, arXiv:1605.07725)."""

    kind: Literal["fgm"]
    """Adversarial training in one step: one more forward and backward pass."""
    epsilon: Rate = 1.0
    """L2 norm of the perturbation."""


class Ema(Group):
    """Exponential moving average of the weights (Polyak & Juditsky 1992), used at evaluation and kept."""

    kind: Literal["ema"]
    """An average that follows the weights."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that stays at each step; half of it is forgotten in ln 2 / (1 − decay) steps."""


Trick = Annotated[Fgm | Ema, Field(discriminator="kind")]
ADVERSARIAL, AVERAGERS = {"fgm"}, {"ema"}
