"""Training of an encoder by its objectives, in the same loop as a fold's, and the folder that it leaves."""

import shutil
import sys

import numpy as np
import torch

from fb3.data.batches import steps_per_epoch
from fb3.data.frames.item_frames import ItemFrames
from fb3.data.pretraining_texts import PretrainingTexts, cut_texts
from fb3.data.tokenizer import padded_length
from fb3.data.tokens import item_frames
from fb3.errors import Fb3Error
from fb3.models.backbone import pretrained_encoder
from fb3.models.build import build_frame_embeddings
from fb3.models.kernels.blocked_attention import use_blocked_attention
from fb3.models.kernels.deberta import use_fused_disentangled_attention
from fb3.models.pretraining_heads import MaskedTokenHead, stored_heads
from fb3.models.surgery import recompute_activations
from fb3.pretraining.best_encoder import BestEncoder, NoBetter
from fb3.pretraining.corpus import Corpus
from fb3.pretraining.objectives import build_objectives
from fb3.pretraining.pretraining_model import PretrainingModel
from fb3.runs.checkpoint import read_weights, weights_of, write_weights
from fb3.runs.provenance import write_provenance
from fb3.system.file_names import CONFIG, ENCODER, FRAME_WEIGHTS, IMAGE_ENCODER, PADDED, WEIGHTS
from fb3.system.files import read_json, write_json
from fb3.system.progress import as_command, say
from fb3.system.seeds import seed_everything
from fb3.training.encoder_folder import with_local_backbone
from fb3.training.loop import Hooks, Learner, Loop, TrainingData
from fb3.training.optimizer import build_optimizer
from fb3.training.saves import Saves
from fb3.training.schedule import build_schedule
from fb3.training.session import Session
from fb3.training.tricks.trick import Step

_NEXT_PROCESS = 2**32  # from one process's seed to the next one's; see fb3.training.fold


def train_encoder(session: Session, corpus: Corpus) -> None:
    """Pretrains into the session's folder, from its last save on where there is one, and exports the best encoder.

    Raises:
        Stopped: it was asked to stop; it is saved.
        Fb3Error: the loss became NaN, or no evaluation gave a number.
    """
    recipe, accelerator = session.recipe, session.accelerator
    seed = recipe.train.seed
    seed_everything(seed)
    own = seed + _NEXT_PROCESS * accelerator.process_index
    frames = [item_frames(corpus.table.iloc[rows], recipe.data) for rows in corpus.split[1:]]
    windows, held_out = (
        _windows(session, corpus, rows, own, each) for rows, each in zip(corpus.split[1:], frames, strict=True)
    )
    model = build_model(session, windows, frames[0]).to(accelerator.device)
    learner, data = _learner(session, model, windows, seed)
    best = BestEncoder(session, session.task, held_out, seed)
    saves = Saves(session, corpus.split, best, data.steps)
    loop = Loop(accelerator, recipe, learner, data, Hooks(best.evaluate, saves.after_step), session.log)
    if accelerator.process_index:
        torch.manual_seed(own)
    done = saves.restore(loop)
    shown = f", {np.count_nonzero(frames[0].counts)} of them with frames," if frames[0] else ""
    texts = f"{len(corpus.split.train_rows)} texts ({len(windows.rows)} windows){shown} to learn from"
    device = f"{accelerator.device.type} {session.precision}"
    session.log.event(
        "resume" if done else "pretraining",
        f"{texts}, {len(corpus.split.valid_rows)} held out, {data.steps} steps, {device}"
        + (f"; goes on after step {done}" if done else ""),
        windows=len(windows.rows),
        steps=data.steps,
        step=done,
    )
    if not done:
        best.evaluate(Step(model, {}))
    try:
        loop.run()
    except NoBetter:
        session.log.event("early_stop", f"no better for {best.since} evaluations; ends after step {loop.step.number}")
    accelerator.free_memory()
    if best.best_score is None:
        raise Fb3Error("no evaluation gave a number, and nothing was kept; try train.precision=fp32")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        export(session, corpus, model, best)
    accelerator.wait_for_everyone()


def _windows(
    session: Session, corpus: Corpus, rows: np.ndarray, seed: int, frames: ItemFrames | None
) -> PretrainingTexts:
    """The windows of some of the texts."""
    recipe, texts = session.recipe, [session.texts[row] for row in rows]
    pad_to = padded_length(session.out / ENCODER)
    parts = session.tokenizer, session.encoded.pad_id, recipe.data, recipe.pretrain
    return cut_texts(texts, corpus.groups[rows], *parts, seed, pad_to, frames)


def build_model(session: Session, windows: PretrainingTexts, items: ItemFrames | None) -> PretrainingModel:
    """The backbone with new heads; a head over the vocabulary starts at the checkpoint's where it has one.

    Frames are standardised by the ones of the `items` that are trained on.
    """
    recipe, out = session.recipe, session.out
    settings = with_local_backbone(recipe, out).model
    encoder = pretrained_encoder(settings, out / ENCODER)
    if settings.gradient_checkpointing is True:
        recompute_activations(encoder)
    frames = None
    if items:
        frames = build_frame_embeddings(with_local_backbone(recipe, out), encoder, out / ENCODER, "pretrained")
        frames.fit_items(items, np.arange(len(items.references)))
    objectives = build_objectives(recipe.pretrain.objectives, encoder, frames)
    model, stored = PretrainingModel(encoder, objectives, frames), stored_heads(settings)
    counts = torch.from_numpy(np.bincount(np.concatenate(windows.rows), minlength=encoder.config.vocab_size)).float()
    heads = [module for module in model.modules() if isinstance(module, MaskedTokenHead)]
    found = [head.start(counts[: len(head.bias)], stored) for head in heads]
    if not all(found) and session.accelerator.is_main_process:
        say(
            f"model.backbone={recipe.model.backbone}: holds no head over the vocabulary that was trained with it; a "
            "new one starts at the tokens' frequencies, and learns at pretrain.head_rate"
        )
    for tower in model.towers().values():
        use_blocked_attention(tower.encoder)
        use_fused_disentangled_attention(tower.encoder)
    return model


def _learner(
    session: Session, model: PretrainingModel, windows: PretrainingTexts, seed: int
) -> tuple[Learner, TrainingData]:
    recipe, rows = session.recipe, np.arange(len(windows.rows))
    settings = recipe.train
    size = steps_per_epoch(len(rows), settings.batch_size, settings.accumulation)
    ends = [size * (epoch + 1) for epoch in range(settings.epochs)]
    data = TrainingData(0, [rows] * settings.epochs, windows, np.zeros((len(rows), 0)), ends, seed, title="pretraining")
    optimizer = build_optimizer(model, recipe.optimizer, scaled=session.precision == "fp16")
    schedule = build_schedule(optimizer, recipe.schedule, data.steps)
    whole = any(each.of_batches for each in recipe.pretrain.objectives)
    return Learner(model, session.task, optimizer, schedule, whole_batches=whole), data


def export(session: Session, corpus: Corpus, model: PretrainingModel, best: BestEncoder) -> None:
    """Writes the best encoder, with the frames' embeddings and without heads, as a backbone folder.

    Whatever the training alone needed is deleted.
    """
    out, kept = session.out, read_weights(best.folder / WEIGHTS)
    with torch.no_grad():
        for name, tensor in weights_of(model).items():
            tensor.copy_(kept[name])
    for file in (out / ENCODER).iterdir():
        if file.name != CONFIG:
            shutil.copy2(file, out / file.name)
    config = read_json(out / ENCODER / CONFIG)
    write_json({k: v for k, v in config.items() if k not in {PADDED, "fb3_new_tokens"}}, out / CONFIG)
    for part, name in ((model.encoder, WEIGHTS), (model.frames, FRAME_WEIGHTS)):
        if part is not None:
            write_weights({key: tensor.cpu() for key, tensor in weights_of(part).items()}, out / name)
    hashes, split = corpus.hashes, corpus.split
    last = {"loss": best.best_score.overall, **best.best_score.columns}
    more = {
        "backbone": session.recipe.model.backbone,
        "pretrain": session.recipe.pretrain.model_dump(mode="json"),
        "before": best.first,
        "after": last,
        "command": sys.argv,
    }
    write_provenance(out, hashes[split.train_rows], hashes[split.valid_rows], more)
    for folder in (best.folder, out / ENCODER, out / IMAGE_ENCODER, out / "scratch"):
        shutil.rmtree(folder, ignore_errors=True)
    words = ", ".join(f"{name} {best.first[name]:.4f} → {value:.4f}" for name, value in last.items())
    session.log.event("encoder", f"{words} | {out}", **last)
    command = as_command(["fb3", "train", "RECIPE", f"model.backbone={out}", "--data", "DIR", "--out", "RUN"])
    say(f"train on it, with the same --competition if there is one: {command}")
