"""The groups of a recipe: typed, frozen, every field with its unit and source.

No torch here: `fb3 recipes` and a notebook that only writes a recipe must not wait for it. A group whose pieces are
chosen by kind (poolings, heads, losses, schedules, tricks) is a union told apart by `kind`; the builder of each floor
maps the kind to its class.
"""

from fb3.recipe.groups.base import Group
from fb3.recipe.groups.data import Augment, DataGroup, FoldsGroup, PredictGroup, Synonyms, Text, Windows
from fb3.recipe.groups.model import (
    FittedPooling,
    GemPooling,
    Head,
    LayersPooling,
    LinearHead,
    ModelGroup,
    MultiSampleHead,
    PlainPooling,
    Pooling,
    Scratch,
    Stitch,
    TokensPooling,
)
from fb3.recipe.groups.task import BATCH_LOSSES, LossTerm, RDrop, RegressionTask
from fb3.recipe.groups.training import MANY_STEPS, OptimizerGroup, ScheduleGroup, SoupSettings, TrainGroup
from fb3.recipe.groups.tricks import (
    ADVERSARIAL,
    AVERAGERS,
    EMBEDDING_ADVERSARIAL,
    ON_ENCODER,
    Awp,
    Ema,
    Fgm,
    GradualUnfreeze,
    Lookahead,
    Noise,
    Pgd,
    PullToStart,
    Swa,
    Trick,
)

__all__ = [
    "ADVERSARIAL",
    "AVERAGERS",
    "BATCH_LOSSES",
    "EMBEDDING_ADVERSARIAL",
    "MANY_STEPS",
    "ON_ENCODER",
    "Augment",
    "Awp",
    "DataGroup",
    "Ema",
    "Fgm",
    "FittedPooling",
    "FoldsGroup",
    "GemPooling",
    "GradualUnfreeze",
    "Group",
    "Head",
    "LayersPooling",
    "LinearHead",
    "Lookahead",
    "LossTerm",
    "ModelGroup",
    "MultiSampleHead",
    "Noise",
    "OptimizerGroup",
    "Pgd",
    "PlainPooling",
    "Pooling",
    "PredictGroup",
    "PullToStart",
    "RDrop",
    "RegressionTask",
    "ScheduleGroup",
    "Scratch",
    "SoupSettings",
    "Stitch",
    "Swa",
    "Synonyms",
    "Text",
    "TokensPooling",
    "TrainGroup",
    "Trick",
    "Windows",
]
