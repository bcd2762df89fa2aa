"""A session: everything that the folds of a run share, such as device, encoder folder and tokens."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from tokenizers import Tokenizer

from fb3.data.frames.item_frames import ItemFrames
from fb3.data.pseudo_essays import PseudoEssays, with_pseudo_essays
from fb3.data.texts import input_texts
from fb3.data.tokenizer import added_tokens, frequent_characters, load_tokenizer
from fb3.data.tokens import Encoded, check_frames, encode_essays, item_frames
from fb3.data.unknown_tokens import tell_unknown
from fb3.errors import Fb3Error
from fb3.models.attached_backbone import local_backbone
from fb3.models.backbone import export_encoder
from fb3.models.backbone_files import KEY, SECOND_KEY, frame_weights
from fb3.models.build import build_scorer
from fb3.models.dry_run import check_length, padding_for, precision_problem
from fb3.models.from_scratch import build_backbone
from fb3.models.picture_processor import PixelMaker
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.recipe import Recipe
from fb3.runs.fold_json import is_begun
from fb3.system.devices import Precision, keep_freed_memory, pick_device, pick_precision
from fb3.system.file_names import (
    CONFIG,
    ENCODER,
    FRAME_ENCODER,
    FRAME_PIXELS,
    FRAME_WIDTH,
    IMAGE_ENCODER,
    PADDED,
    SECOND,
)
from fb3.system.files import atomic_folder, read_json, write_json
from fb3.system.kaggle import secret
from fb3.system.progress import say
from fb3.targets.metrics import Score
from fb3.targets.target import Target
from fb3.tasks.base import Task
from fb3.tasks.build import build_task
from fb3.training.run_log import RunLog
from fb3.training.stop_request import StopRequest
from fb3.version import __version__

_VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "pandas")


class Evaluation(NamedTuple):
    """fold: its number. share: share of the fold's training that is done, 0-1. score: the score of the weights now."""

    fold: int
    share: float
    score: Score


OnEvaluation = Callable[[Evaluation], None]


@dataclass(frozen=True)
class Unlabelled:
    """Essays without scores: their texts as the tokenizer got them, and their tokens."""

    texts: list[str]
    encoded: Encoded


@dataclass(frozen=True)
class Session:
    """Everything that all folds of a run share.

    out: the run folder. targets: (N, K), the N essays'. texts, encoded: of these essays, and behind them of the P
    pseudo-labelled ones; an estimator's `encoded` are the inputs of its features, and it has no texts and no tokenizer.
    digests: hashes of the training files, by their keys in environment.json; none: folds are not saved while they
    train. stop: when to stop early.
    """

    recipe: Recipe
    essays: pd.DataFrame
    out: Path
    accelerator: Accelerator
    precision: Precision
    task: Task
    log: RunLog
    encoded: Encoded | FeatureInputs
    targets: np.ndarray
    texts: Sequence[str] = ()
    tokenizer: Tokenizer | None = None
    unlabelled: Unlabelled | None = None
    pseudo: PseudoEssays | None = None
    on_evaluation: OnEvaluation | None = None
    digests: dict[str, str] | None = None
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def target(self) -> Target:
        """The target that the task learns."""
        return self.task.target

    @property
    def ids(self) -> np.ndarray:
        """The essays' ids, (N,)."""
        return self.essays[self.recipe.data.id_column].to_numpy()


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
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
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


def open_session(
    recipe: Recipe,
    essays: pd.DataFrame,
    out: Path,
    accelerator: Accelerator,
    precision: Precision,
    unlabelled: pd.DataFrame | None = None,
    pseudo: PseudoEssays | None = None,
) -> Session:
    """Writes the encoder folder, opens the trackers and tokenises all essays, also the ones without scores.

    Raises:
        Fb3Error: the encoder cannot be used, or not as the recipe wants it.
    """
    accelerator, precision = open_encoder(recipe, essays, out, accelerator, precision)

    def tokenised(table: pd.DataFrame) -> tuple[list[str], Encoded]:
        return input_texts(table, recipe.data), encode_essays(table, out / ENCODER, recipe.data)

    texts, encoded = tokenised(with_pseudo_essays(essays, pseudo))
    if accelerator.is_main_process:
        tell_unknown(texts, encoded, out / ENCODER, f"{KEY}={recipe.model.backbone}")
        if encoded.second:
            tell_unknown(texts, encoded.second, out / ENCODER / SECOND, f"{SECOND_KEY}={recipe.model.stitch.backbone}")
    task = build_task(recipe)
    return Session(
        recipe=recipe,
        essays=essays,
        out=out,
        accelerator=accelerator,
        precision=precision,
        task=task,
        tokenizer=load_tokenizer(out / ENCODER)[0],
        texts=texts,
        encoded=encoded,
        targets=task.target.truths(essays),
        unlabelled=None if unlabelled is None else Unlabelled(*tokenised(unlabelled)),
        pseudo=pseudo,
        log=open_log(out, accelerator),
    )


def open_encoder(
    recipe: Recipe, essays: pd.DataFrame, out: Path, accelerator: Accelerator, precision: Precision
) -> tuple[Accelerator, Precision]:
    """Writes the encoder folder, tries the encoder, and opens the trackers.

    Returns:
        Accelerator and precision, other ones where the encoder cannot learn in the precision given.

    Raises:
        Fb3Error: the encoder cannot be used, or not as the recipe wants it.
    """
    # The encoder folder of a run that goes on stays as it is: its folds were trained on it, by whatever version.
    if writes := accelerator.is_main_process and not (is_begun(out) and (out / ENCODER / CONFIG).is_file()):
        _write_encoder(recipe, essays, out)
    accelerator.wait_for_everyone()
    accelerator, precision = _try_encoders(recipe, out, accelerator, precision, writes=writes)
    accelerator.wait_for_everyone()
    if recipe.train.trackers:
        if "wandb" in recipe.train.trackers:
            _prepare_wandb()
        accelerator.init_trackers("fb3", config={"recipe": recipe.to_yaml()})
    return accelerator, precision


def open_log(out: Path, accelerator: Accelerator) -> RunLog:
    """The log of a run folder."""
    return RunLog(out / "log.jsonl", accelerator.is_main_process, lambda v, step: accelerator.log(v, step=step))


def gathered(accelerator: Accelerator, item: Any) -> list[Any]:
    """The items of all processes, in their order."""
    return gather_object([item]) if accelerator.num_processes > 1 else [item]


def versions() -> dict[str, str]:
    """Versions of python, fb3 and the libraries that decide a result."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), "fb3": __version__, **found}


def close_session(session: Session) -> None:
    """Finishes the trackers. The process group stays open: another run in this process may use it."""
    session.accelerator.wait_for_everyone()
    for tracker in session.accelerator.trackers:
        tracker.finish()


def _installed_trackers(trackers: tuple[str, ...]) -> list[str] | None:
    """The recipe's experiment trackers; refuses one whose package is missing, which accelerate would ignore."""
    installed = {tracker.value for tracker in get_available_trackers()}
    if missing := [name for name in trackers if name not in installed]:
        raise Fb3Error(f"train.trackers: {missing} not installed; pip install {' '.join(missing)}")
    return list(trackers) or None


def _prepare_wandb() -> None:
    if key := secret("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key
    else:
        os.environ.setdefault("WANDB_MODE", "offline")


def _write_encoder(recipe: Recipe, essays: pd.DataFrame, out: Path) -> None:
    if recipe.model.backbone == "scratch" and not (out / "scratch").is_dir():
        texts = chain.from_iterable(essays[column] for column in recipe.data.text_columns())
        with atomic_folder(out / "scratch") as aside:
            build_backbone(recipe.model.scratch, texts, aside, recipe.train.seed)
    characters = frequent_characters(input_texts(essays, recipe.data), recipe.data)
    added, model = added_tokens(recipe.data), with_local_backbone(recipe, out).model
    export_encoder(model, out / ENCODER, added, characters=characters)
    if frames := item_frames(essays, recipe.data):
        config = {**read_json(out / ENCODER / CONFIG), FRAME_WIDTH: frames.width}
        made_by = _made_by(frames, recipe, model.backbone)
        config |= {FRAME_ENCODER: made_by} if made_by else {}
        write_json(config | _pixels(recipe, out), out / ENCODER / CONFIG)
    if model.stitch:
        export_encoder(model.second(), out / ENCODER / SECOND, added, SECOND_KEY, characters)


def _made_by(frames: ItemFrames, recipe: Recipe, backbone: str) -> str:
    """A hash of the frames' image encoder; refuses frames of another one than the backbone's own, if it has any."""
    if not (file := frame_weights(backbone)):
        return frames.made_by
    known, place = read_json(file.parent / CONFIG), f"{KEY}={backbone}"
    if recipe.model.frames.kind != "single_stream":
        say(f"{place}: its embeddings of frames are for a single stream; the frames' layers of this run start anew")
        return frames.made_by
    if recipe.optimizer.image_rate:  # its frames are pixels, and no vectors
        return frames.made_by
    check_frames(frames, known[FRAME_WIDTH], known.get(FRAME_ENCODER, ""), place)
    say(f"{place}: frames start from its embeddings, standardised as in its pretraining")
    return known.get(FRAME_ENCODER, frames.made_by)


def _pixels(recipe: Recipe, out: Path) -> dict[str, Any]:
    """The form of the pictures whose encoder is trained, for config.json."""
    if recipe.optimizer.image_rate is None:
        return {}
    maker = PixelMaker(str(out / IMAGE_ENCODER))
    numbers = {"mean": maker.mean.tolist(), "deviation": maker.deviation.tolist()}
    return {FRAME_PIXELS: {"shape": list(maker.shape), **numbers}}


def _try_encoders(
    recipe: Recipe, out: Path, accelerator: Accelerator, precision: Precision, *, writes: bool
) -> tuple[Accelerator, Precision]:
    """Tries whether the encoders can learn, before hours are spent on them; float32 if they cannot in less.

    A new encoder folder gets a note of the tokens that inputs are padded to, where its states depend on padding.
    """
    scorer, longest = build_scorer(recipe, out / ENCODER, init="trial"), recipe.data.encoder_length()
    key = "data.windows.length" if recipe.data.windows else "data.max_length"
    if recipe.data.frames and recipe.model.frames.kind == "single_stream":
        longest, key = longest + recipe.data.frames.most, "data.max_length + data.frames.most"
    failures = []
    kinds = [(out / ENCODER, KEY, recipe.model)]
    kinds += [(out / ENCODER / SECOND, SECOND_KEY, recipe.model.second())] if recipe.model.stitch else []
    for tower, (folder, of, settings) in zip(scorer.towers().values(), kinds, strict=True):
        name, kind = f"{of}={settings.backbone}", type(tower.encoder).__name__
        check_length(tower, longest, key)
        padded = padding_for(tower, longest, name)
        if padded and writes:
            say(f"{name}: the states of {kind} depend on padding, so each text is padded to {key}={padded}")
            write_json({**read_json(folder / CONFIG), PADDED: padded}, folder / CONFIG)
        if why := precision_problem(tower, precision, accelerator.device, longest):
            failures.append((f"{name}: {kind}", why))
        if why and precision == "fp32":
            raise Fb3Error(
                f"{name}: {kind} cannot learn from a text of {longest} tokens ({why}); take another backbone"
            )
    if not failures:
        return accelerator, precision
    if accelerator.is_main_process:
        say(f"{failures[0][0]} cannot learn in {precision} ({failures[0][1]}); trains in fp32")
    return _try_encoders(recipe, out, *open_accelerator(recipe, out, "fp32"), writes=writes)


def with_local_backbone(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with folders as its backbones: the one built for `scratch`, attached ones for hub ids.

    Raises:
        Fb3Error: see `local_backbone`.
    """
    model, scratch = recipe.model, recipe.model.backbone == "scratch"
    changed = {"backbone": str(out / "scratch") if scratch else local_backbone(model.backbone, KEY)}
    if model.stitch:
        changed["stitch"] = model.stitch.model_copy(
            update={"backbone": local_backbone(model.stitch.backbone, SECOND_KEY)}
        )
    return recipe.model_copy(update={"model": model.model_copy(update=changed)})
