"""FLOPs of a forward pass by arithmetic, to compare encoders and to project times to another chip."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fb3.system.file_names import CONFIG, SECOND
from fb3.system.files import read_json

if TYPE_CHECKING:
    from fb3.data.tokens import Encoded

T4_FLOPS = 24e12  # FLOP a second that real kernels sustain in fp16; the data sheet says 65e12


def forward_flops(config: Mapping[str, Any], lengths: np.ndarray) -> np.ndarray:
    """FLOPs of an encoder's forward pass for each essay of `lengths` tokens, (N,) float64, without padding.

    By its config.json: n · (24·T·h² + 4·T²·h) for n layers of width h, and n · 4·T·R·h more with R relative positions.
    Word vectors, which have no layers, count as one layer: the net above them takes about as long.
    """
    width = config.get("hidden_size") or config.get("d_model") or config.get("dim") or 768
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 12
    layers = 1 if config.get("num_hidden_layers") == 0 else layers
    relative = config.get("relative_attention") is True
    buckets = config.get("position_buckets") or 0
    positions = 2 * (buckets if buckets > 0 else config.get("max_position_embeddings", 512)) if relative else 0
    tokens = np.asarray(lengths, np.float64)
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * positions * width)


def encoder_flops(folder: Path, encoded: "Encoded") -> np.ndarray:
    """FLOPs of one fold for each essay, (N,) float64: its encoder's, and the second encoder's where there is one.

    Frames count as tokens, also where a smaller net of their own reads them.
    """
    own = encoded.lengths + (encoded.frames.counts if encoded.frames else 0)
    flops = forward_flops(read_json(folder / CONFIG), own)
    return flops + encoder_flops(folder / SECOND, encoded.second) if encoded.second else flops
