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

_NAMES = {
    "fb3.bundles.bundle": ("Bundle", "verify_bundle"),
    "fb3.bundles.packing": ("write_bundle",),
    "fb3.data.essays": ("read_essays",),
    "fb3.data.folds": ("make_folds",),
    "fb3.errors": ("Fb3Error", "Stopped"),
    "fb3.models.build": ("build_scorer",),
    "fb3.prediction.inference_loop": ("predict",),
    "fb3.prediction.predictions": ("Predictions", "average"),
    "fb3.recipe": ("Recipe", "load_recipe"),
    "fb3.runs.joining": ("merge",),
    "fb3.sessions.train_notebook": ("hand_over", "take_up", "train_session"),
    "fb3.submission.inference": ("infer",),
    "fb3.system.kaggle": ("find_bundle", "find_competition"),
    "fb3.targets.metrics": ("mcrmse",),
    "fb3.training.run": ("train", "train_fold"),
    "fb3.tuning.search": ("tune",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fb3' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
