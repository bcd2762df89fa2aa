"""The encoders of an estimator's features, brought into the run folder: plain ones once, fine-tuned ones by fold."""

import shutil
from pathlib import Path

import pandas as pd

from fb3.data.folds import FoldSplit
from fb3.data.ids import match_ids
from fb3.data.tables import FOLD_COLUMN, read_table
from fb3.data.texts import input_texts
from fb3.data.tokenizer import added_tokens, frequent_characters
from fb3.errors import Fb3Error
from fb3.models.attached_backbone import local_backbone
from fb3.models.backbone import export_encoder
from fb3.models.backbone_files import FEATURE_KEY
from fb3.models.build import build_embedder
from fb3.models.dry_run import check_length, padding_for
from fb3.prediction.estimators.feature_inputs import encoders
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.estimator import EmbeddingsSettings
from fb3.recipe.model import ModelSettings
from fb3.runs.checkpoint import weights_of, write_weights
from fb3.runs.fold_json import check_weights, digest_of, is_finished
from fb3.runs.leaks import recorded_leak
from fb3.runs.scores import told_leak
from fb3.system.file_names import (
    CONFIG,
    ENCODER,
    FOLD_JSON,
    PADDED,
    RECIPE,
    WEIGHTS,
    feature_folder,
    fold_folder,
    fold_folders,
)
from fb3.system.files import atomic_folder, link_or_copy, read_json, write_json
from fb3.system.progress import say


def is_run(encoder: str) -> bool:
    """Whether the encoder of a feature is a run folder."""
    return (Path(encoder) / RECIPE).is_file()


def check_sources(recipe: Recipe, essays: pd.DataFrame, splits: list[FoldSplit], out: Path) -> None:
    """Refuses fine-tuned sources that would leak: their folds must validate on the same essays.

    A run folder `out` that goes on must find them as they were.

    Raises:
        Fb3Error: names the run and the mend.
    """
    for number, settings in encoders(recipe).items():
        if is_run(settings.encoder):
            _check_run(Path(settings.encoder), recipe, essays, splits)
            _check_unchanged(Path(settings.encoder), out, number)


def _check_unchanged(run: Path, out: Path, number: int) -> None:
    """Refuses a source that was trained anew since the run folder `out` took its recipe or a fold."""
    taken = {feature_folder(out, number) / RECIPE: run / RECIPE}
    taken |= {feature_folder(fold, number) / FOLD_JSON: run / fold.name / FOLD_JSON for fold in fold_folders(out)}
    for there, now in taken.items():
        if there.is_file() and digest_of(there) != digest_of(now):
            raise Fb3Error(f"{now}: not the file that {out} was begun with; choose another --out")


def _check_run(run: Path, recipe: Recipe, essays: pd.DataFrame, splits: list[FoldSplit]) -> None:
    source, identifier, place = load_recipe(run / RECIPE), recipe.data.id_column, f"{FEATURE_KEY}={run}"
    if source.estimator or source.model.stitch:
        raise Fb3Error(f"{place}: has no encoder of its own, or two; give a run of one fine-tuned encoder")
    if source.optimizer.image_rate is not None:
        raise Fb3Error(f"{place}: has trained its image encoder too; give a run without optimizer.image_rate")
    if source.data.text_columns() != recipe.data.text_columns() or source.data.id_column != identifier:
        raise Fb3Error(f"{place}: reads other columns of train.csv; give --recipe {run / RECIPE}")
    if bool(source.data.prepare) != bool(recipe.data.prepare):
        raise Fb3Error(f"{place}: one of the two recipes has data.prepare; give --recipe {run / RECIPE}")
    if (leak := recorded_leak(run, source)) and not told_leak(run, source):  # recipes tell the others, and are copied
        raise Fb3Error(f"{place}: {leak}; give another run")
    table = read_table(run / "folds.csv", [source.data.id_column, FOLD_COLUMN])
    rows = match_ids(table[identifier], essays[identifier], run / "folds.csv", "the essays", f"; leave {run} out")
    theirs = table[FOLD_COLUMN].astype(int).to_numpy()[rows]
    for split in splits:
        if {*split.valid_rows} != {*(theirs == split.fold).nonzero()[0]}:
            raise Fb3Error(
                f"{place}: its fold {split.fold} validates on other essays, so its encoder would have seen some of "
                f"these; take its folds with --recipe {run / RECIPE}"
            )
        if not is_finished(fold_folder(run, split.fold)):
            raise Fb3Error(f"{place}: fold {split.fold} is not trained to its end; run `fb3 train` first")


def write_sources(recipe: Recipe, essays: pd.DataFrame, out: Path) -> None:
    """Writes the folder of each encoder that is not in the run folder yet; a source's weights come with its folds."""
    for number, settings in encoders(recipe).items():
        if not feature_folder(out, number).is_dir():
            with atomic_folder(feature_folder(out, number)) as aside:
                if is_run(settings.encoder):
                    shutil.copytree(Path(settings.encoder) / ENCODER, aside / ENCODER)
                    shutil.copyfile(Path(settings.encoder) / RECIPE, aside / RECIPE)
                else:
                    _write_plain(settings, recipe, essays, aside)


def _write_plain(settings: EmbeddingsSettings, recipe: Recipe, essays: pd.DataFrame, folder: Path) -> None:
    place = f"{FEATURE_KEY}={settings.encoder}"
    settings = settings.model_copy(update={"encoder": local_backbone(settings.encoder, FEATURE_KEY)})
    characters = frequent_characters(input_texts(essays, recipe.data), recipe.data)
    backbone = ModelSettings(backbone=settings.encoder)
    export_encoder(backbone, folder / ENCODER, added_tokens(recipe.data), FEATURE_KEY, characters)
    scorer, longest = (
        build_embedder(settings, recipe.data, folder / ENCODER, init="trial"),
        recipe.data.encoder_length(),
    )
    check_length(scorer, longest, "data.windows.length" if recipe.data.windows else "data.max_length")
    if padded := padding_for(scorer, longest, place):
        say(f"{place}: its states depend on padding, so each text is padded to {padded} tokens")
        write_json({**read_json(folder / ENCODER / CONFIG), PADDED: padded}, folder / ENCODER / CONFIG)
    scorer = build_embedder(settings, recipe.data, folder / ENCODER, init="pretrained")
    write_weights(weights_of(scorer), folder / WEIGHTS)


def copy_fold_sources(recipe: Recipe, out: Path, fold: int) -> None:
    """Puts a fold's fine-tuned encoders into its folder, as hard links where the file system has them."""
    for number, settings in encoders(recipe).items():
        if is_run(settings.encoder):
            source = fold_folder(Path(settings.encoder), fold)
            check_weights(source, "train this fold again")
            folder = feature_folder(fold_folder(out, fold), number)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name in (WEIGHTS, FOLD_JSON):
                link_or_copy((source / name).resolve(), folder / name)
