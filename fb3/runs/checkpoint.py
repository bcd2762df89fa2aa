"""Fold folders: model.safetensors and fold.json. No pickles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fb3.data.batches import Batch
from fb3.errors import Fb3Error, one_line
from fb3.models.build import build_scorer
from fb3.models.scorer import Scorer
from fb3.recipe import Recipe
from fb3.system.devices import out_of_memory
from fb3.system.disk_space import cannot_write
from fb3.system.file_contents import weights_problem
from fb3.system.file_names import FOLD_JSON, INT8, WEIGHTS
from fb3.system.files import atomic_file, read_json, sha256, write_json


def weights_of(scorer: Scorer) -> dict[str, Tensor]:
    """The parameters, each shared one once, and floating-point buffers, by name.

    Integer buffers (position ids) are left out: the code computes them, and they come and go between transformers'
    versions.
    """
    kept = set(scorer.state_dict())
    buffers = {name: b for name, b in scorer.named_buffers() if name in kept and b.is_floating_point()}
    return {name: t.detach() for name, t in [*scorer.named_parameters(), *buffers.items()]}


def save_fold(folder: Path, scorer: Scorer, info: Mapping[str, Any]) -> None:
    """Writes the weights, then fold.json with `info` and the weights' hash."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights({name: t.cpu() for name, t in weights_of(scorer).items()}, folder / WEIGHTS)
    write_json({**info, "sha256": sha256(folder / WEIGHTS)}, folder / FOLD_JSON)


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        Fb3Error: the place cannot be written, or is full: DiskFull, with the bytes that it needs.
    """
    with atomic_file(path) as aside:
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, aside, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise cannot_write(path, error, sum(tensor.nbytes for tensor in tensors.values())) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; an Fb3Error names one that is missing or broken."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise Fb3Error(f"{path}: no such file; copy the whole run folder") from None
    except (OSError, SafetensorError) as error:
        words = weights_problem(path) if isinstance(error, SafetensorError) else ""
        raise Fb3Error(f"{path}: cannot be read ({f'it {words}' if words else error})") from None


def as_half(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors in fp16, except the head's: its bias is near the mean of the targets, and fp16 rounds 50 by 0.016.

    Raises:
        Fb3Error: a weight is too large for fp16.
    """
    half = {name: tensor if name.startswith("head.") else tensor.half() for name, tensor in tensors.items()}
    if large := [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]:
        raise Fb3Error(f"{source}: {large[:3]} hold weights beyond fp16's 65,504; pack with --weights fp32")
    return half


def load_fold(recipe: Recipe, encoder: Path, folder: Path) -> Scorer:
    """Loads the scorer of a fold: float32, on the CPU, in eval mode. It is built without a random initialisation.

    Args:
        recipe: the run's saved recipe.
        encoder: the run's encoder folder.
        folder: the fold folder.

    Raises:
        Fb3Error: a file is missing or broken, or its weights do not fit the recipe's model.
    """
    scorer = build_scorer(recipe, encoder, init="empty")
    try:
        assign_weights(scorer, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    except Fb3Error as error:
        trained = (read_json(folder / FOLD_JSON).get("versions") or {}).get("transformers")
        if trained in {None, transformers.__version__}:
            raise
        versions = f"trained under transformers {trained}, here it is {transformers.__version__}"
        raise Fb3Error(f"{error}; {versions}") from None
    return scorer.eval()


@torch.no_grad()
def check_reload(scorer: Scorer, recipe: Recipe, encoder: Path, batch: Batch) -> None:
    """Refuses a scorer that would predict otherwise once it is saved and loaded again; draws no random numbers.

    Args:
        scorer: in float32, on the CPU, and untrained: a fault found after its training would cost the training.
        recipe, encoder: the run's, see `load_fold`.
        batch: a few essays.

    Raises:
        Fb3Error: names the encoder.
    """
    was_training, why = scorer.training, "it predicts otherwise"
    try:
        with torch.random.fork_rng(devices=[]):  # a head's first weights are drawn on the CPU
            again = build_scorer(recipe, encoder, init="empty")
        assign_weights(again, weights_of(scorer), "the model")
        mine, reloaded = (each.eval()(batch).pooled for each in (scorer, again))
        if (mine - reloaded).abs().max() <= 1e-4 * mine.abs().max():
            why = ""
    except Exception as error:  # the encoder's own code may raise anything
        if out_of_memory(error):
            raise
        why = one_line(error)
    scorer.train(was_training)
    if why:
        kind = type(scorer.encoder).__name__
        raise Fb3Error(
            f"model.backbone: a saved {kind} cannot be loaded again as it was ({why}); take another backbone"
        )


def save_scales(folder: Path, scales: Mapping[str, Tensor]) -> None:
    """Writes the int8 scales of a packed fold, and their hash into its fold.json."""
    write_weights(scales, folder / INT8)
    write_json({**read_json(folder / FOLD_JSON), "int8": sha256(folder / INT8)}, folder / FOLD_JSON)


def drop_scales(folder: Path) -> None:
    """Deletes what `save_scales` wrote."""
    (folder / INT8).unlink()
    write_json(
        {name: value for name, value in read_json(folder / FOLD_JSON).items() if name != "int8"}, folder / FOLD_JSON
    )


def read_scales(folder: Path) -> dict[str, Tensor]:
    """The int8 scales of a packed fold; an Fb3Error where they are not the file that was packed."""
    if sha256(folder / INT8) != read_json(folder / FOLD_JSON).get("int8"):
        raise Fb3Error(f"{folder / INT8}: its hash is not the one in {FOLD_JSON}; upload it again")
    return read_weights(folder / INT8)


def assign_weights(scorer: Scorer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Replaces a scorer's parameters by tensors, in float32; parameters that are shared stay shared.

    Raises:
        Fb3Error: names or shapes differ.
    """
    wanted = weights_of(scorer)
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    wrong = [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        raise Fb3Error(
            f"{source}: not the weights of this recipe's model: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(wrong)} of another shape {wrong[:3]}"
        )
    if whole := sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point()):
        raise Fb3Error(f"{source}: {whole[:3]} hold {tensors[whole[0]].dtype}, not weights; copy the file again")
    new = {id(p): nn.Parameter(tensors[name].float(), p.requires_grad) for name, p in scorer.named_parameters()}
    buffers = dict(scorer.named_buffers())
    for module in scorer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = new[id(parameter)]
    with torch.no_grad():
        for name in tensors.keys() & buffers.keys():
            buffers[name].copy_(tensors[name])
