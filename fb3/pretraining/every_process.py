"""Vectors of every process's share of a batch, for losses that compare all of its texts."""

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F


def of_every_process(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, and where this process's own begin among them.

    Gradients go back to the process whose rows they are, summed over the processes.

    Args:
        rows: (B, ...), B by process.

    Returns:
        The rows of all processes, in their order, and a number of rows.
    """
    if not distributed.is_initialized():
        return rows, 0
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    sizes = [int(count) for count in counts]
    padding = [0, 0] * (rows.dim() - 1) + [0, max(sizes) - len(rows)]
    parts = all_gather(F.pad(rows, padding))  # wants one shape
    whole = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return whole, sum(sizes[: distributed.get_rank()])
