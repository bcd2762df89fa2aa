"""What the folds of a run share: device, precision, processes, the encoder folder, the essays' tokens."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from fb3.essays import Encoded, tokenise
from fb3.models import load_tokenizer
from fb3.models.encoder import export_encoder
from fb3.models.scratch import build_backbone
from fb3.recipe import Recipe
from fb3.runtime import Precision, pick_device, pick_precision, secret
from fb3.tasks import Task, build_task
from fb3.training.log import RunLog


@dataclass(frozen=True)
class Session:
    """What all folds of a run share."""

    recipe: Recipe
    essays: pd.DataFrame
    out: Path
    accelerator: Accelerator
    precision: Precision
    task: Task
    encoded: Encoded
    targets: np.ndarray
    log: RunLog


def open_session(recipe: Recipe, essays: pd.DataFrame, out: Path) -> Session:
    """Finds the device, writes the encoder folder and tokenises the essays."""
    transformers.utils.logging.disable_progress_bar()  # ours are enough
    device = pick_device()
    precision = pick_precision(recipe.train.precision, device)
    accelerator = _accelerator(recipe, device, precision, out)
    if accelerator.is_main_process:
        _write_encoder(recipe, essays[recipe.data.text_column], out)
    accelerator.wait_for_everyone()
    tokenizer, pad = load_tokenizer(out / "encoder")
    return Session(
        recipe=recipe,
        essays=essays,
        out=out,
        accelerator=accelerator,
        precision=precision,
        task=build_task(recipe),
        encoded=tokenise(essays[recipe.data.text_column].tolist(), tokenizer, pad, recipe.data),
        targets=essays[list(recipe.data.target_columns)].to_numpy(np.float32),
        log=RunLog(out / "log.jsonl", accelerator.is_main_process, lambda v, step: accelerator.log(v, step=step)),
    )


def _accelerator(recipe: Recipe, device: torch.device, precision: Precision, out: Path) -> Accelerator:
    AcceleratorState._reset_state()  # it would keep the precision of an earlier run in this process
    if "wandb" in recipe.train.trackers:
        _prepare_wandb()
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        # Some encoders have parameters that a plain forward leaves out (XLNet's mask, Longformer's global attention).
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(recipe.train.trackers) or None,
        project_dir=out,
    )
    if recipe.train.trackers:
        accelerator.init_trackers("fb3", config={"recipe": recipe.to_yaml()})
    return accelerator


def _prepare_wandb() -> None:
    if key := secret("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key
    else:
        os.environ.setdefault("WANDB_MODE", "offline")


def _write_encoder(recipe: Recipe, texts: pd.Series, out: Path) -> None:
    if recipe.model.backbone == "scratch" and not (out / "scratch").is_dir():
        build_backbone(recipe.model.scratch, texts, out / "scratch", recipe.train.seed)
    (out / "encoder").mkdir(parents=True, exist_ok=True)
    export_encoder(with_local_backbone(recipe, out).model, out / "encoder")


def with_local_backbone(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with `backbone: scratch` turned into the folder that was built for it."""
    if recipe.model.backbone != "scratch":
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": str(out / "scratch")})})
