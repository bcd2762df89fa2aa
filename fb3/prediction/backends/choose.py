"""Encoders on a CPU through another library than torch: OpenVINO or ONNX Runtime. Poolings and heads stay with torch.

A backend converts an encoder once for all folds, with its weights as inputs (`FunctionalEncoder`), and then binds each
fold's.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Literal

import torch

from fb3.errors import Fb3Error
from fb3.models.scorer import Scorer
from fb3.prediction.backends.backend_encoder import BackendEncoder
from fb3.prediction.backends.functional_encoder import FunctionalEncoder
from fb3.recipe import Recipe
from fb3.system.devices import Precision
from fb3.system.progress import say

Backend = Literal["torch", "openvino", "onnx"]

_AUTO: Backend = "torch"  # what `auto` means on a CPU: the one place where that is decided, by measurement
_MODULES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime")}
# Of the states' difference from torch's in fp32: rounding gives 1e-6, and 0.02 in bf16; wrong weights about 1.
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}


def pick_backend(wish: str, device: torch.device) -> tuple[Backend, str]:
    """`auto` made definite, and a wish that cannot be had made torch.

    Args:
        wish: predict.backend.
        device: where to compute.

    Returns:
        The backend, and why it is not the wish; empty where it is.
    """
    if wish == "auto":
        wish = _AUTO if device.type == "cpu" else "torch"
    if wish == "torch":
        return "torch", ""
    if device.type != "cpu":
        return "torch", f"predict.backend={wish} is for CPUs; on {device} torch computes"
    try:
        for module in _MODULES[wish]:
            import_module(module)
    except Exception as error:  # not there, or there and broken: a library of another glibc raises OSError
        why = " ".join(str(error).split())[:200]
        return "torch", f"predict.backend={wish}: {why}, so torch computes; pip install 'fb3[{wish}]'"
    return wish, ""


def tell_backends(recipes: Iterable[Recipe], device: torch.device | str, strict: bool = False) -> None:
    """Says, once for all folds, where torch computes instead of the backend that a recipe names.

    Raises:
        Fb3Error: with `strict`, the library is missing.
    """
    device = torch.device(device)
    for wish in dict.fromkeys(recipe.predict.backend for recipe in recipes):
        _, why = pick_backend(wish, device)
        if why and strict and device.type == "cpu":
            raise Fb3Error(why)
        if why:
            say(why)


def use_backend(scorer: Scorer, backend: Backend, precision: Precision, name: str) -> bool:
    """Lets a backend compute a scorer's encoders, in place; what fails is said, and left to torch.

    Args:
        scorer: as `load_fold` gives it: float32, on the CPU, in eval mode.
        backend: as `pick_backend` gives it.
        precision: of the encoder, as far as the library and the chip have it.
        name: of the fold, for messages.

    Returns:
        False where torch is to compute; then nothing has changed.
    """
    if backend == "torch":
        return False
    precision = "fp32" if backend == "onnx" else precision
    try:
        bind = import_module(f"fb3.prediction.backends.{backend}").bind
        towers = scorer.towers().values()
        made = [
            BackendEncoder(t.encoder, t.reads, bind(FunctionalEncoder(t.encoder, t.reads), precision), name)
            for t in towers
        ]
        for each in made:
            each.check(_TOLERANCE[precision])
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        say(f"{name}: predict.backend={backend} cannot compute this encoder ({why}); torch does")
        return False
    for tower, each in zip(towers, made, strict=True):
        tower.encoder = each
    return True
