"""States of encoders under whatever transformers is imported: `python states.py FOLDER...`, each as a bundle has it.

A folder holds config.json and weights.safetensors, with the names that another version gave. Writes states.safetensors,
or error.txt, beside them.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fb3.models.backbone import empty_encoder, random_encoder
from fb3.models.towers import layer_states
from fb3.runs.checkpoint import assign_weights, weights_of

LENGTHS = (64, 13)  # tokens of two texts


def save_encoder(folder: Path) -> None:
    """Weights as random as the family's own, biases and norms too, so that every part shows."""
    torch.manual_seed(0)
    encoder = random_encoder(folder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_file({name: t.contiguous() for name, t in weights_of(encoder).items()}, folder / "weights.safetensors")


@torch.no_grad()
def states_of(folder: Path) -> dict[str, Tensor]:
    """The states that poolings read: by layer (2, T, D), on real tokens."""
    encoder: nn.Module = empty_encoder(folder)
    assign_weights(encoder, load_file(folder / "weights.safetensors"), str(folder))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.arange(mask.numel()).reshape(mask.shape) * 7 % 90 + 5
    ids = torch.where(mask.bool(), ids, encoder.config.pad_token_id)
    out = encoder.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    layers = [*layer_states(out)]
    keep = mask[..., None].float()
    return {str(n): (s * keep if s.shape[:2] == mask.shape else s).contiguous() for n, s in enumerate(layers)}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            save_file(states_of(Path(name)), Path(name) / "states.safetensors")
        except Exception as error:
            (Path(name) / "error.txt").write_text(f"{type(error).__name__}: {error}")
