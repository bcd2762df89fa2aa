"""A training that keeps what each process drew: the tokens that it saw, and what dropout left of their embeddings.

python -m tests.training.witness DATA OUT [key=value ...] writes OUT/<rank>.pt.
"""

import os
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from fb3.recipe import load_recipe
from fb3.training import fold
from fb3.training.run import train


def watch(data: Path, out: Path, overrides: list[str]) -> dict[str, list[Tensor]]:
    """Each forward pass of a training of fold 0, by its input_ids (B, T) and by what dropout kept, (B, T, D)."""
    found: dict[str, list[Tensor]] = {"seen": [], "kept": []}
    build = fold.build_scorer

    def keep(what: str, module: torch.nn.Module, tensor: Tensor) -> None:
        if module.training:
            found[what].append(tensor)

    def watched(*arguments, **keywords):
        scorer = build(*arguments, **keywords)
        encoder, dropout = scorer.encoder, scorer.encoder.embeddings.dropout
        encoder.register_forward_pre_hook(lambda m, _, given: keep("seen", m, given["input_ids"]), with_kwargs=True)
        dropout.register_forward_hook(lambda m, _, output: keep("kept", m, output != 0))
        return scorer

    with mock.patch.object(fold, "build_scorer", watched):
        train(load_recipe("tiny", overrides), data, out / "run", folds=[0])
    return found


if __name__ == "__main__":
    out = Path(sys.argv[2])
    torch.save(watch(Path(sys.argv[1]), out, sys.argv[3:]), out / f"{os.environ['RANK']}.pt")
