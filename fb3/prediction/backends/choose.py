"""Encoders on a CPU by OpenVINO or ONNX Runtime; poolings and heads stay with torch.

A backend converts an encoder once for all folds, as a function of its weights (`FunctionalEncoder`), and then binds
each fold's weights.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Literal

import torch

from fb3.errors import Fb3Error, one_line
from fb3.models.scorer import Scorer
from fb3.prediction.backends.backend_encoder import BackendEncoder
from fb3.prediction.backends.functional_encoder import FunctionalEncoder
from fb3.recipe import Recipe
from fb3.system.devices import Precision
from fb3.system.progress import say

Backend = Literal["torch", "openvino", "onnx"]

_AUTO: Backend = "torch"  # the meaning of `auto` on a CPU, by measurement; decided here alone
_MODULES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime")}
# Largest relative difference of states from torch's in fp32: rounding gives 1e-6, and 0.02 in bf16; wrong weights 1.
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}


def pick_backend(wish: str, device: torch.device) -> tuple[Backend, str]:
    """The backend for a recipe's `predict.backend` on a device, and the reason why it is another one, or "".

    Resolves `auto`, and replaces a backend that is not available by torch.
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
    except Exception as error:  # missing, or broken: a library built for another glibc raises OSError
        return "torch", f"predict.backend={wish}: {one_line(error)}, so torch computes; pip install 'fb3[{wish}]'"
    return wish, ""


def tell_backends(recipes: Iterable[Recipe], device: torch.device | str, strict: bool = False) -> None:
    """Says, once for all folds, that torch computes instead of the backend that a recipe names.

    With `strict`, a missing library raises an Fb3Error instead.
    """
    device = torch.device(device)
    for wish in dict.fromkeys(recipe.predict.backend for recipe in recipes):
        _, why = pick_backend(wish, device)
        if why and strict and device.type == "cpu":
            raise Fb3Error(why)
        if why:
            say(why)


def use_backend(scorer: Scorer, backend: Backend, precision: Precision, name: str) -> bool:
    """Lets a backend compute a scorer's encoders, in place; False, with nothing changed, where torch has to compute.

    The scorer comes from `load_fold`: float32, on the CPU, in eval mode. The precision is used if the library and the
    chip have it. A failure is said, under the fold's `name`.
    """
    if backend == "torch":
        return False
    if not scorer.of_tokens_alone:
        say(f"{name}: predict.backend={backend} computes encoders of tokens alone, and frames stand beside; torch does")
        return False
    precision = "fp32" if backend == "onnx" else precision
    try:
        bind = import_module(f"fb3.prediction.backends.{backend}").bind
        towers = scorer.towers().values()
        encoders = [
            BackendEncoder(t.encoder, t.reads, bind(FunctionalEncoder(t.encoder, t.reads), precision), name)
            for t in towers
        ]
        for encoder in encoders:
            encoder.check(_TOLERANCE[precision])
    except Exception as error:
        say(f"{name}: predict.backend={backend} cannot compute this encoder ({one_line(error, 300)}); torch does")
        return False
    for tower, encoder in zip(towers, encoders, strict=True):
        tower.encoder = encoder
    return True
