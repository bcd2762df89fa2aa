"""InfoNCE: the cross-entropy of a vector's own partner among many (van den Oord et al. 2018, arXiv:1807.03748)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Contrast(NamedTuple):
    """losses: (M,). right: whether the partner is the nearest, (M,) bool. open: whether there is another, (M,) bool."""

    losses: Tensor
    right: Tensor
    open: Tensor


def contrast(one: Tensor, two: Tensor, own: Tensor, alike: Tensor, temperature: float | Tensor) -> Contrast:
    """InfoNCE by cosine over temperature.

    Args:
        one: M vectors, (M, D).
        two: their partners among others, (N, D).
        own: the place of each one's partner among the N, (M,).
        alike: (M, N) bool, vectors that are no negatives; the partner itself may be among them.
        temperature: divides the cosines.
    """
    with torch.autocast(one.device.type, enabled=False):
        cosines = F.normalize(one.float(), dim=-1) @ F.normalize(two.float(), dim=-1).T / temperature  # (M, N)
        rows = torch.arange(len(one), device=one.device)
        alike = alike.clone()
        alike[rows, own] = False
        partner, cosines = cosines[rows, own], cosines.masked_fill(alike, -torch.inf)
        right = (cosines > partner[:, None]).sum(1) == 0
        return Contrast(torch.logsumexp(cosines, 1) - partner, right, (~alike).sum(1) > 1)


def info_nce(one: Tensor, two: Tensor, group: Tensor, temperature: float, begin: int = 0) -> Tensor:
    """Cross-entropy of each text's second vector among all second vectors.

    Args:
        one: first vectors of B texts, (B, D).
        two: second vectors of N texts, (N, D), among them those B.
        group: (N,); a text's negatives are the texts of other groups.
        temperature: divides the cosines.
        begin: where the B texts stand among the N.

    Returns:
        A loss for each text, (B,); 0 where the batch holds no text of another group.
    """
    own = begin + torch.arange(len(one), device=group.device)
    return contrast(one, two, own, group[own, None] == group, temperature).losses
