"""Batches: of similar length for training, by token budget for inference, padded to the longest of a batch only."""

import math
from typing import TYPE_CHECKING

import numpy as np

from fb3.data.tokens import Encoded

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]
SECOND_ = "second_"  # before the names of what a second encoder gets
BUCKET_BATCHES = 16  # batches that are sorted by length together; 16 keep padding near 2 % and the order still random


def training_batches(lengths: np.ndarray, rows: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of `size` rows of similar length, in an order that is new for each epoch and fixed by the seed.

    Args:
        lengths: tokens of every essay, (N,).
        rows: the training rows.
        size: essays a batch; the last may be smaller.
        seed: with `epoch` decides the order.
        epoch: counted from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(rows)
    batches = []
    for start in range(0, len(shuffled), size * BUCKET_BATCHES):
        bucket = shuffled[start : start + size * BUCKET_BATCHES]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def steps_per_epoch(essays: int, size: int, accumulation: int) -> int:
    """Optimizer steps of one epoch of `training_batches`."""
    return math.ceil(math.ceil(essays / size) / accumulation)


def inference_batches(lengths: np.ndarray, rows: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Batches of at most `token_budget` tokens, padding included, longest first (so memory fails in the first).

    An essay longer than the budget gets a batch of its own.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    batches, start = [], 0
    while start < len(ordered):
        size = max(1, token_budget // max(1, int(lengths[ordered[start]])))
        batches.append(ordered[start : start + size])
        start += size
    return batches


def collate(encoded: Encoded, rows: np.ndarray, targets: np.ndarray | None = None) -> Batch:
    """One batch of B essays, T tokens the longest input, or what all are padded to.

    Returns:
        input_ids and attention_mask (B, T), row (B,), and targets (B, K) where given. With windows, W inputs in all and
        at most V an essay: input_ids and attention_mask (W, T), windows (B, V), the inputs of each essay, and
        window_mask (B, V), 1 where there is one. statistics (B, S) where the recipe wants them. What a second encoder
        gets stands beside it, as second_input_ids.
    """
    import torch

    inputs, truths = encoded.draw(rows, targets)  # once: augmented rows change each time
    batch = {"row": np.asarray(rows, np.int64)}
    if encoded.slicer:
        cut = [encoded.slicer.windows(tokens) for tokens in inputs]
        inputs = [window for windows in cut for window in windows]
        batch |= _window_places([len(windows) for windows in cut])
    batch["input_ids"], batch["attention_mask"] = _padded(inputs, encoded.pad, encoded.padded)
    if truths is not None:
        batch["targets"] = truths
    if encoded.statistics is not None:
        batch["statistics"] = encoded.statistics[rows]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
    if encoded.second:
        tensors |= {SECOND_ + name: tensor for name, tensor in collate(encoded.second, rows).items()}
    return tensors


def on_device(batch: Batch, device: "torch.device") -> Batch:
    """The batch where it is to be computed; to a GPU from pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in batch.items()}
    return {name: value.to(device, non_blocking=True) for name, value in pinned(batch).items()}


def pinned(batch: Batch) -> Batch:
    """The batch where a GPU can fetch it; what is there already stays."""
    return {name: value.pin_memory() for name, value in batch.items()}


def _padded(inputs: list[np.ndarray], pad: int, shortest: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, (B, T), T `shortest` at least."""
    longest = max(shortest, *map(len, inputs))
    ids = np.full((len(inputs), longest), pad, np.int64)
    mask = np.zeros((len(inputs), longest), np.int64)
    for position, tokens in enumerate(inputs):
        ids[position, : len(tokens)] = tokens
        mask[position, : len(tokens)] = 1
    return ids, mask


def _window_places(counts: list[int]) -> dict[str, np.ndarray]:
    """Where the windows of each essay stand among the inputs: windows and window_mask, (B, V)."""
    places = np.zeros((len(counts), max(counts)), np.int64)
    mask = np.zeros_like(places)
    first = 0
    for essay, count in enumerate(counts):
        places[essay, :count] = np.arange(first, first + count)
        mask[essay, :count] = 1
        first += count
    return {"windows": places, "window_mask": mask}
