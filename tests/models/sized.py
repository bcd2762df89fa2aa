"""Encoders of three layers, tiny by config, with all that their families have beside the layers."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
GROUPS = [f"{part}_groups" for part in ("q", "k", "v", "post_attention", "intermediate", "output")]
T5 = {"d_model": 32, "num_layers": 3, "num_heads": 2, "d_kv": 8, "d_ff": 16}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
SIZES = {
    "deberta": {**SMALL, **RELATIVE},
    "deberta-v2": {**SMALL, **RELATIVE, "conv_kernel_size": 3, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "electra": {**SMALL, "embedding_size": 8},
    "convbert": {**SMALL, "embedding_size": 32, "head_ratio": 1},
    "squeezebert": {**SMALL, "embedding_size": 32, **dict.fromkeys(GROUPS, 1)},
    "xlnet": {"d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 32},
    "t5": T5,
    "umt5": T5,
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16},
}


def sized(family: str) -> nn.Module:
    """The encoder of a family, the same at each call."""
    config = AutoConfig.for_model(
        family, vocab_size=50, pad_token_id=0, architectures=[], **SIZES.get(family, SMALL), layer_norm_eps=1e-6
    )
    torch.manual_seed(0)
    auto = AutoModelForTextEncoding if config.is_encoder_decoder or family == "t5" else AutoModel
    return auto.from_config(config)
