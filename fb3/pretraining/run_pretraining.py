"""A pretraining: texts and a backbone to an encoder's folder, which a recipe names as its backbone.

torch is imported only once recipe, texts and folder are checked.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fb3.data.texts import input_texts
from fb3.errors import Fb3Error
from fb3.models.backbone_files import FRAMES_KEY, check_backbone
from fb3.pretraining.corpus import Corpus, read_corpus
from fb3.pretraining.pretraining_recipe import own_keys, pretraining_recipe
from fb3.recipe import Recipe, load_recipe
from fb3.runs.fold_json import is_begun
from fb3.runs.identity import Identity, named_files, recorded
from fb3.runs.provenance import refuse_provenance
from fb3.runs.run_folder import copy_prepare
from fb3.system.disk_space import raises_disk_full
from fb3.system.file_names import PREPARE, RECIPE
from fb3.system.files import delete_partial_files, write_text
from fb3.system.folder_lock import lock_folder
from fb3.system.kaggle import is_main_process, parse_duration, session_seconds
from fb3.training.run_start import refuse_foreign_folder, write_environment
from fb3.training.stop_request import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fb3.training.session import Session


@raises_disk_full("out")
def pretrain_encoder(
    recipe: Recipe | str | Path,
    data: str | Path,
    out: str | Path,
    texts: Sequence[str | Path] = (),
    *,
    stop_after: str | float | None = None,
) -> Path:
    """Pretrains a recipe's backbone on texts into the backbone folder `out`; a stopped pretraining goes on.

    Args:
        recipe: a recipe, a YAML file or a built-in name; its `pretrain` group decides.
        data: the competition's folder.
        out: the encoder's folder.
        texts: further tables with the recipe's text columns.
        stop_after: time after which to save and stop; see `fb3.training.run.train`.

    Raises:
        Fb3Error: recipe, texts or folder are wrong, or the loss became NaN.
        Stopped: it was stopped and is saved; the same call goes on.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data, out = Path(data), Path(out)
    stop = StopRequest(None if stop_after is None else parse_duration(str(stop_after)) - session_seconds())
    check_backbone(recipe.model.backbone)
    if recipe.data.image_encoder:
        check_backbone(recipe.data.image_encoder, FRAMES_KEY)
    if recipe.model.stitch:
        raise Fb3Error("model.stitch: pretraining takes one encoder; leave it out, and pretrain each by itself")
    recipe = pretraining_recipe(recipe)
    corpus = read_corpus(recipe, data, [Path(file) for file in texts])
    refuse_provenance(out)
    refuse_foreign_folder(out)
    with own_keys(), lock_folder(out, "fb3 pretrain") if is_main_process() else nullcontext():
        begun = is_begun(out)
        if begun and (differ := Identity(recipe, named_files(corpus.digests, recipe)).differences(recorded(out))):
            raise Fb3Error(f"{out}: was begun with another {differ}; choose another --out, or give the same")
        from fb3.pretraining.encoder_training import train_encoder
        from fb3.training.processes import open_accelerator
        from fb3.training.run_pictures import read_pictures
        from fb3.training.session import close_session

        accelerator, precision = open_accelerator(recipe, out)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            delete_partial_files(out)
        (table,) = read_pictures(recipe, out, accelerator, [corpus.table])
        corpus = replace(corpus, table=table)
        session = _open_session(recipe, corpus, out, accelerator, precision, stop)
        if accelerator.is_main_process:
            copy_prepare(recipe, out)
            write_text(recipe.with_prepare(PREPARE).to_yaml(), out / RECIPE)
            write_environment(session, data, begun)
        with stop.listening():
            train_encoder(session, corpus)
        close_session(session)
    return out


def _open_session(
    recipe: Recipe, corpus: Corpus, out: Path, accelerator: "Accelerator", precision: str, stop: StopRequest
) -> "Session":
    """The session of a pretraining: its essays are the texts, whose ids are their hashes."""
    import numpy as np

    from fb3.data.tokenizer import load_tokenizer
    from fb3.data.tokens import Encoded
    from fb3.pretraining.pretraining_model import PretrainingTask
    from fb3.system.file_names import ENCODER
    from fb3.training.encoder_folder import open_encoder
    from fb3.training.session import Session, open_log

    essays = corpus.table.assign(**{recipe.data.id_column: corpus.hashes})
    accelerator, precision = open_encoder(recipe, essays, out, accelerator, precision)
    tokenizer, pad = load_tokenizer(out / ENCODER)
    return Session(
        recipe=recipe,
        essays=essays,
        out=out,
        accelerator=accelerator,
        precision=precision,
        task=PretrainingTask(recipe.pretrain),
        tokenizer=tokenizer,
        texts=input_texts(essays, recipe.data),
        encoded=Encoded([], pad, np.zeros(0, np.int64)),
        targets=np.zeros((0, 0), np.float32),
        log=open_log(out, accelerator),
        digests=corpus.digests,
        stop=stop,
    )
