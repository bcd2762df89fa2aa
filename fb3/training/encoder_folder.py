"""The encoder folder of a run: written from the backbone, and tried before hours are spent on it."""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator

from fb3.data.frames.item_frames import ItemFrames
from fb3.data.texts import input_texts
from fb3.data.tokenizer import added_tokens, frequent_characters
from fb3.data.tokens import check_frames, item_frames
from fb3.errors import Fb3Error
from fb3.models.attached_backbone import local_backbone
from fb3.models.backbone import export_encoder
from fb3.models.backbone_files import KEY, SECOND_KEY, frame_weights
from fb3.models.build import build_scorer
from fb3.models.dry_run import check_length, padding_for, precision_problem
from fb3.models.from_scratch import build_backbone
from fb3.models.picture_processor import PixelMaker
from fb3.recipe import Recipe
from fb3.runs.fold_json import is_begun
from fb3.system.devices import Precision
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
from fb3.training.processes import open_accelerator


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


def _prepare_wandb() -> None:
    if key := secret("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key
    else:
        os.environ.setdefault("WANDB_MODE", "offline")
