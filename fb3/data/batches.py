"""Batches: of similar length for training, within a token budget for inference; padded to their longest input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fb3.data.tokens import Encoded
from fb3.data.windows import window_places

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]
SECOND_ = "second_"  # prefix of the names of a second encoder's tensors
BUCKET_BATCHES = 16  # batches whose essays are sorted by length together: padding stays near 2 %, the order random


@dataclass(frozen=True)
class Sampling:
    """Classes drawn in other shares than they have.

    classes: the class of every essay, (N,). chances: from the counts of classes to the chance of each of their essays,
    up to a factor.
    """

    classes: np.ndarray
    chances: Callable[[np.ndarray], np.ndarray]

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws as many rows as there are, each as often as its class wants, rounded down or up: luck decides little.

        Systematic sampling: equal steps from a random start along a line on which each row has its chance as length.
        Rows of a class lie side by side, in random order, so that its number is as even as theirs.
        """
        rows = rng.permutation(rows)
        rows = rows[np.argsort(self.classes[rows], kind="stable")]
        _, numbers, counts = np.unique(self.classes[rows], return_inverse=True, return_counts=True)
        ends = np.cumsum(self.chances(counts)[numbers])
        places = (rng.random() + np.arange(len(rows))) / len(rows) * ends[-1]
        return rows[np.searchsorted(ends, places, side="right").clip(max=len(rows) - 1)]


def rarest_labels(targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The class of each essay, (N,), from labels (N, K): of its labels the rarest among `rows`; K where it has none."""
    true = targets > 0.5
    rarest = np.where(true, true[rows].sum(0), np.inf).argmin(1)
    return np.where(true.any(1), rarest, targets.shape[1])


def training_batches(
    lengths: np.ndarray, rows: np.ndarray, size: int, seed: int, epoch: int, sampling: Sampling | None = None
) -> list[np.ndarray]:
    """Batches of `size` rows of similar length, in an order that is new for each epoch and fixed by the seed.

    Args:
        lengths: tokens of every essay, (N,).
        rows: the training rows.
        size: essays a batch; the last may be smaller.
        seed: with `epoch` decides the order.
        epoch: counted from 0.
        sampling: the way that rows are drawn, with replacement; none: each once.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(sampling.draw(rows, rng) if sampling else rows)
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
    """One batch of B essays; T is the tokens of its longest input, or `pad_to` where that is more.

    Returns:
        input_ids and attention_mask (B, T), row (B,), and targets (B, K) where given. With windows, W in all and at
        most V an essay: input_ids and attention_mask (W, T), windows (B, V), the places of an essay's windows among the
        W, and window_mask (B, V), 1 where there is a window. statistics (B, S) where the recipe wants them. frames
        (B, F, D) and frame_mask (B, F) where there are any, drawn where there are too many and targets. A second
        encoder's tensors have names such as second_input_ids.
    """
    import torch

    inputs, truths = encoded.draw(rows, targets)  # once, because augmented essays change with each draw
    batch = {"row": np.asarray(rows, np.int64)}
    if encoded.splitter:
        split = [encoded.splitter.split(tokens) for tokens in inputs]
        inputs = [window for windows in split for window in windows]
        batch |= window_places([len(windows) for windows in split])
    batch["input_ids"], batch["attention_mask"] = _padded(inputs, encoded.pad_id, encoded.pad_to)
    if truths is not None:
        batch |= truths if isinstance(truths, dict) else {"targets": truths}
    if encoded.frames:
        batch |= encoded.frames.batch(rows, targets is not None)
    if encoded.statistics is not None:
        batch["statistics"] = encoded.statistics[rows]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
    if encoded.second:
        tensors |= {SECOND_ + name: tensor for name, tensor in collate(encoded.second, rows).items()}
    return tensors


def on_device(batch: Batch, device: "torch.device") -> Batch:
    """The batch on the device that computes; a GPU copies it from pinned memory, and the CPU does not wait."""
    cuda = device.type == "cuda"
    batch = pinned(batch) if cuda else batch
    return {name: value.to(device, non_blocking=cuda) for name, value in batch.items()}


def pinned(batch: Batch) -> Batch:
    """The batch in memory from which a GPU can copy by itself; tensors that are there already stay."""
    return {name: value.pin_memory() for name, value in batch.items()}


def _padded(inputs: list[np.ndarray], pad_id: int, pad_to: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, (B, T), T at least `pad_to`."""
    longest = max(pad_to, *map(len, inputs))
    ids = np.full((len(inputs), longest), pad_id, np.int64)
    mask = np.zeros((len(inputs), longest), np.int64)
    for position, tokens in enumerate(inputs):
        ids[position, : len(tokens)] = tokens
        mask[position, : len(tokens)] = 1
    return ids, mask
