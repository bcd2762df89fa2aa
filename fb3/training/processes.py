"""Device, precision and processes of a training, by accelerate."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object

from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.system.devices import Precision, keep_freed_memory, pick_device, pick_precision

_WAIT = timedelta(hours=12)  # the other processes wait for the main one's pictures; NCCL's own limit is 10 minutes


def open_accelerator(recipe: Recipe, out: Path, precision: Precision | None = None) -> tuple[Accelerator, Precision]:
    """Sets up device, processes and precision before anything is written; processes can wait for each other then.

    Args:
        recipe: the recipe to train.
        out: the run folder.
        precision: the precision to train in; none: the recipe's.

    Raises:
        Fb3Error: a device or a precision that does not work here, or a loss that several processes cannot share.
    """
    transformers.utils.logging.disable_progress_bar()  # fb3 shows its own
    keep_freed_memory()
    device = pick_device(broken=recipe.train.broken_gpu)
    precision = precision or pick_precision(recipe.train.precision, device)
    AcceleratorState._reset_state()  # otherwise the precision of this process's last run would stay
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        # find_unused_parameters: some encoders have parameters that a plain forward leaves out (XLNet's mask,
        # Longformer's global attention). broadcast_buffers: no buffer changes in training, and writing one again
        # between two forward passes breaks the backward pass of both on some versions of torch.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=_WAIT),
        ],
        log_with=_installed_trackers(recipe.train.trackers),
        project_dir=out,
    )
    if (accelerator.device.index or 0) != (device.index or 0):
        raise Fb3Error(f"FB3_DEVICE={device}: training takes the first visible GPU; use CUDA_VISIBLE_DEVICES instead")
    if recipe.task.of_batches() and accelerator.num_processes > 1:
        raise Fb3Error(f"task: {recipe.task.of_batches()[0]} does not add up over processes; use one, or take mse")
    if recipe.task.weighting == "uncertainty" and accelerator.num_processes > 1:
        raise Fb3Error("task.weighting=uncertainty: each process would learn its own; use one process, or take fixed")
    if recipe.task.r_drop and recipe.model.layer_drop and accelerator.num_processes > 1:
        raise Fb3Error("task.r_drop with model.layer_drop: the two passes differ in their layers; use one process")
    if recipe.task.uda and recipe.model.layer_drop and accelerator.num_processes > 1:
        raise Fb3Error("task.uda with model.layer_drop: its passes differ in their layers; use one process")
    return accelerator, precision


def gathered(accelerator: Accelerator, item: Any) -> list[Any]:
    """The items of all processes, in their order."""
    return gather_object([item]) if accelerator.num_processes > 1 else [item]


def _installed_trackers(trackers: tuple[str, ...]) -> list[str] | None:
    """The recipe's experiment trackers; refuses one whose package is missing, which accelerate would ignore."""
    installed = {tracker.value for tracker in get_available_trackers()}
    if missing := [name for name in trackers if name not in installed]:
        raise Fb3Error(f"train.trackers: {missing} not installed; pip install {' '.join(missing)}")
    return list(trackers) or None
