"""The groups of a recipe: typed, frozen, every field with its unit and source.

No torch here: `fb3 recipes` and a notebook that only writes a recipe must not wait for it. A group whose pieces are
chosen by kind (poolings, heads, losses, schedules, tricks) is a union told apart by `kind`; the builder of each floor
maps the kind to its class.
"""

from fb3.recipe.groups.base import Group
from fb3.recipe.groups.data import Augment, DataGroup, FoldsGroup, PredictGroup
from fb3.recipe.groups.model import (
    GemPooling,
    Head,
    LayersPooling,
    LinearHead,
    ModelGroup,
    MultiSampleHead,
    PlainPooling,
    Pooling,
    Scratch,
    TokensPooling,
)
from fb3.recipe.groups.task import (
    BATCH_LOSSES,
    COMPARISONS,
    BinnedTask,
    LossTerm,
    OrdinalTask,
    RDrop,
    RegressionTask,
    TaskGroup,
    TaskSettings,
)
from fb3.recipe.groups.training import OptimizerGroup, ScheduleGroup, SoupSettings, TrainGroup
from fb3.recipe.groups.tricks import (
    ADVERSARIAL,
    AVERAGERS,
    EMBEDDING_ADVERSARIAL,
    Awp,
    Ema,
    Fgm,
    GradualUnfreeze,
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
    "COMPARISONS",
    "EMBEDDING_ADVERSARIAL",
    "Augment",
    "Awp",
    "BinnedTask",
    "DataGroup",
    "Ema",
    "Fgm",
    "FoldsGroup",
    "GemPooling",
    "GradualUnfreeze",
    "Group",
    "Head",
    "LayersPooling",
    "LinearHead",
    "LossTerm",
    "ModelGroup",
    "MultiSampleHead",
    "Noise",
    "OptimizerGroup",
    "OrdinalTask",
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
    "Swa",
    "TaskGroup",
    "TaskSettings",
    "TokensPooling",
    "TrainGroup",
    "Trick",
]
