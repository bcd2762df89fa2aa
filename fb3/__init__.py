"""fb3 fine-tunes text encoders and packs them for Kaggle competitions without internet.

    from fb3 import Recipe, train, infer

Each public name is imported on first use, so that `import fb3` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fb3.version import __version__

if TYPE_CHECKING:
    from fb3.bundles.bundle import Bundle, verify_bundle
    from fb3.bundles.packing import write_bundle
    from fb3.data.essays import read_essays
    from fb3.data.folds import make_folds
    from fb3.errors import Fb3Error, Stopped
    from fb3.models.build import build_scorer
    from fb3.prediction.inference_loop import predict
    from fb3.prediction.predictions import Predictions, average
    from fb3.recipe import Recipe, load_recipe
    from fb3.runs.joining import merge
    from fb3.sessions.train_notebook import hand_over, take_up, train_session
    from fb3.submission.inference import infer
    from fb3.system.kaggle import find_bundle, find_competition
    from fb3.targets.metrics import mcrmse
    from fb3.training.run import train, train_fold
    from fb3.tuning.search import tune

_HOME = {
    "Bundle": "fb3.bundles.bundle",
    "Fb3Error": "fb3.errors",
    "Predictions": "fb3.prediction.predictions",
    "Recipe": "fb3.recipe",
    "Stopped": "fb3.errors",
    "average": "fb3.prediction.predictions",
    "build_scorer": "fb3.models.build",
    "find_bundle": "fb3.system.kaggle",
    "find_competition": "fb3.system.kaggle",
    "hand_over": "fb3.sessions.train_notebook",
    "infer": "fb3.submission.inference",
    "load_recipe": "fb3.recipe",
    "make_folds": "fb3.data.folds",
    "mcrmse": "fb3.targets.metrics",
    "merge": "fb3.runs.joining",
    "predict": "fb3.prediction.inference_loop",
    "read_essays": "fb3.data.essays",
    "take_up": "fb3.sessions.train_notebook",
    "train": "fb3.training.run",
    "train_fold": "fb3.training.run",
    "train_session": "fb3.sessions.train_notebook",
    "tune": "fb3.tuning.search",
    "verify_bundle": "fb3.bundles.bundle",
    "write_bundle": "fb3.bundles.packing",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fb3' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
