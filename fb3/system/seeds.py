"""Seeds, and the state of every random number generator."""

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch on every device."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: "torch.device") -> dict[str, Any]:
    """The state of each generator that `seed_everything` seeds, as numbers and tensors."""
    import numpy
    import torch

    version, words, gauss = random.getstate()
    kind, keys, *rest = numpy.random.get_state()
    own = {"cuda": lambda: torch.cuda.get_rng_state(device), "mps": torch.mps.get_rng_state}.get(device.type)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "device": own() if own else None,
    }


def restore_random_state(state: dict[str, Any], device: "torch.device") -> None:
    """Restores what `random_state` gave; the device's generator only on a device of the same kind."""
    import numpy
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    elif state["device"] is not None and device.type == "mps":
        torch.mps.set_rng_state(state["device"])
