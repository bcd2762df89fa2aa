#!/usr/bin/env python3
"""Times DeBERTa-v3-base's attention, transformers' eager one and fb3's, in turns in one process; random weights.

    python benchmarks/attention.py [--tokens N] [--lengths T ...] [--layers N ...] [--repeats R] [--json FILE]

Each row is the median of R repeats of one encoder's pass (or training step: forward and backward, no dropout) over a
batch of N tokens without padding. "apart" is the largest difference from transformers' own in fp32, relative to the
largest number: of the last states, or for a training step of the gradient of the first layer's query weights. An
encoder that fails, or is further apart than `TIMES` the rounding of transformers' own in that precision, gets no
figure. On a GPU with `pip install flashdeberta`, that is timed too.
"""

import argparse
import copy
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from fb3.models.kernels.deberta import precompute_position_tables, use_fused_disentangled_attention

V3_BASE = {
    "vocab_size": 1000,  # small: the embeddings are not measured
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
PEER = "flashdeberta"
TIMES, LEAST = 3, 1e-4


def encoders(layers: int, kind: str, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The encoders to compare, with the same weights."""
    torch.manual_seed(0)
    eager = AutoModel.from_config(AutoConfig.for_model("deberta-v2", num_hidden_layers=layers, **V3_BASE))
    with torch.no_grad():
        eager.encoder.rel_embeddings.weight.normal_()  # their size is that of the states, so that positions matter
    eager = eager.to(device, dtype).eval()
    fused = copy.deepcopy(eager)
    assert use_fused_disentangled_attention(fused)
    if kind == "forward":  # inference computes with them, see `lower_weights`
        precompute_position_tables(fused)
    found = {"eager": eager, "fb3": fused}
    if device.type == "cuda" and importlib.util.find_spec(PEER):
        from flashdeberta import FlashDebertaV2Model

        found[PEER] = FlashDebertaV2Model(copy.deepcopy(eager.config)).to(device, dtype).eval()
        found[PEER].load_state_dict(eager.state_dict())
    return found


def passes(kind: str, encoder: nn.Module, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that computes one pass and returns the tensor to compare."""
    mask = torch.ones_like(ids)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def train() -> torch.Tensor:
        encoder.zero_grad()
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        (states.float() * torch.linspace(-1, 1, states.shape[-1], device=ids.device)).sum().backward()
        return encoder.encoder.layer[0].attention.self.query_proj.weight.grad

    return train if kind == "train" else forward


def timed(call: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    """Seconds and result of a call. One thread is timed by its own clock, which other programs do not disturb."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    out = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, out.detach().float().clone()


def race(layers: int, length: int, kind: str, tokens: int, repeats: int, device: torch.device) -> list[dict]:
    """A row for each encoder and precision, timed in turns after a pass each to warm up."""
    ids = torch.randint(1, 1000, (max(1, tokens // length), length), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    rows, exact = [], None
    for dtype in (torch.float32, torch.bfloat16):
        contestants = {n: passes(kind, e, ids) for n, e in encoders(layers, kind, device, dtype).items()}
        apart, failed = {}, {}
        for name, call in contestants.items():
            try:
                out = timed(call, device)[1]
            except Exception as error:  # a peer may fail, fb3 and transformers may not
                if name != PEER:
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            exact = out if exact is None else exact
            apart[name] = ((out - exact).abs().max() / exact.abs().max()).item()
        agree = {name for name, off in apart.items() if off <= max(LEAST, TIMES * apart["eager"])}
        seconds = {name: [] for name in contestants if name in agree}
        for _ in range(repeats):
            for name, measured in seconds.items():
                measured.append(timed(contestants[name], device)[0])
        eager = statistics.median(seconds["eager"])
        for name in contestants:
            row = {"layers": layers, "length": length, "essays": len(ids), "kind": kind, "dtype": str(dtype)[6:]}
            row |= {"who": name, "apart": apart.get(name), "failed": failed.get(name)}
            figures = failed.get(name, "no figure: too far from eager")
            if name in agree:
                median = statistics.median(seconds[name])
                row |= {"ms": 1e3 * median, "ratio": eager / median, "all": seconds[name]}
                figures = f"{1e3 * median:9.1f} {eager / median:6.2f}"
            rows.append(row)
            off = f"{apart[name]:9.1e}" if name in apart else ""
            print(f"{layers:6} {length:6} {len(ids):6} {kind:8} {row['dtype']:9} {name:20} {figures} {off}", flush=True)
    return rows


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="a batch; default 4096, on a CPU fewer for slow cases")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens an essay")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 12], help="of the encoder")
    parser.add_argument("--kinds", nargs="+", choices=["forward", "train"], help="both; on a CPU one layer is trained")
    parser.add_argument("--repeats", type=int, default=20 if gpu else 5, help="the median is taken")
    parser.add_argument("--json", type=Path, help="writes all times there")
    options = parser.parse_args()
    if not gpu:
        print(f"{PEER}: left out, it needs CUDA")
    elif not importlib.util.find_spec(PEER):
        print(f"{PEER}: left out, pip install {PEER}")
    print(f"{torch.cuda.get_device_name() if gpu else 'cpu'}, {torch.get_num_threads()} thread(s), {torch.__version__}")
    print("layers length essays kind     precision who                         ms  ratio     apart")
    rows = []
    for layers in options.layers:
        small = not gpu and layers > 1
        for length in options.lengths:
            for kind in options.kinds or (["forward"] if small else ["forward", "train"]):
                tokens = options.tokens or (512 if small else 2048 if kind == "train" and not gpu else 4096)
                rows += race(layers, length, kind, tokens, options.repeats, device)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
