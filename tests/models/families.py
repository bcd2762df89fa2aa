"""Families of encoders, tiny by config, and a tokenizer of each kind, trained on a few texts."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedTokenizerFast

from fb3.models.from_scratch import SPECIAL, train_tokenizer

POSITIONS = 80
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**_BERT, "max_position_embeddings": POSITIONS}
ROBERTA = {**BERT, "bos_token_id": 0, "eos_token_id": 2}
DEBERTA = {
    **BERT,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
T5 = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32}
BART = {
    **{f"{half}_{key}": size for half in ("encoder", "decoder") for key, size in (("layers", 2), ("ffn_dim", 32))},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16},
    "max_position_embeddings": POSITIONS,
}
LLAMA = {**BERT, "num_key_value_heads": 1, "head_dim": 8}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": POSITIONS}

# By model_type, with what follows it after an @ where one type has several kinds; and the kind of tokenizer.
WORDPIECE = {
    "bert": BERT,
    "albert": {**BERT, "embedding_size": 8, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    "convbert": {**BERT, "embedding_size": 8, "head_ratio": 1, "conv_kernel_size": 3},
    "deberta-v2": {**DEBERTA, "position_buckets": 8, "conv_kernel_size": 3},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": POSITIONS},
    "electra": {**BERT, "embedding_size": 8},
    "ernie": BERT,
    "esm": {**BERT, "position_embedding_type": "rotary", "mask_token_id": 4},
    "fnet": BERT,
    "funnel": {
        **{"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1},
        **{"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32},
    },
    "gte": BERT,
    "layoutlm": BERT,
    "megatron-bert": BERT,
    "mobilebert": {**BERT, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8},
    "modernbert": {**BERT, "global_attn_every_n_layers": 2, "local_attention": 8},
    "mra": BERT,
    "nomic_bert": BERT,
    "nystromformer": {**BERT, "num_landmarks": 8, "segment_means_seq_len": 8, "conv_kernel_size": 5},
    "perceiver": {"num_latents": 8, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 2},
    "reformer": {
        **{"hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8, "feed_forward_size": 32},
        **{"attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 8]},
        **{"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4},
        "max_position_embeddings": 64,
    },
    "rembert": {**BERT, "input_embedding_size": 8, "output_embedding_size": 8},
    "roc_bert": {
        **BERT,
        **{f"{what}_{key}": 8 for what in ("pronunciation", "shape") for key in ("vocab_size", "embed_dim")},
    },
    "roformer": {**BERT, "embedding_size": 16},
    "splinter": BERT,
    "squeezebert": {
        **{**BERT, "embedding_size": 16},
        **{f"{part}_groups": 2 for part in ("q", "k", "v", "intermediate", "output")},
    },
    "tapas": BERT,
    "yoso": BERT,
}
BYTES = {
    "roberta": ROBERTA,
    "bart": BART,
    "big_bird": {**BERT, "max_position_embeddings": 256, "block_size": 4, "num_random_blocks": 1},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "data2vec-text": ROBERTA,
    "deberta": DEBERTA,
    "eurobert": {**BERT, "num_key_value_heads": 2},
    "gemma2": {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gpt2": GPT,
    "gpt_neox": BERT,
    "ibert": ROBERTA,
    "llama": LLAMA,
    "longformer": {**ROBERTA, "attention_window": [8, 8]},
    "luke": {**ROBERTA, "entity_vocab_size": 10, "entity_emb_size": 8},
    "markuplm": {**ROBERTA, "max_depth": 4, "xpath_unit_hidden_size": 4},
    "opt": {
        **{"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"ffn_dim": 32, "max_position_embeddings": POSITIONS},
    },
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "roberta-prelayernorm": ROBERTA,
}
PIECES = {
    "camembert": ROBERTA,
    "deberta-v2@v3": {**DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "flaubert": XLM,
    "gemma": LLAMA,
    "jina_embeddings_v3": ROBERTA,
    "lilt": {**ROBERTA, "hidden_size": 24, "channel_shrink_ratio": 2},
    "mbart": BART,
    "mistral": LLAMA,
    "mpnet": ROBERTA,
    "mt5": T5,
    "t5": T5,
    "umt5": T5,
    "xlm": XLM,
    "xlm-roberta": ROBERTA,
    "xlm-roberta-xl": ROBERTA,
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "xmod": {**ROBERTA, "languages": ["en_XX"], "default_language": None},
    "xmod@en_XX": {**ROBERTA, "languages": ["en_XX"], "default_language": "en_XX"},
}
KINDS = {"wordpiece": WORDPIECE, "bytes": BYTES, "pieces": PIECES}
FAMILIES = {
    family: (kind, config)
    for kind, configs in KINDS.items()
    for family, config in configs.items()
    if family.partition("@")[0] in CONFIG_MAPPING  # known to this version of transformers
}
_UNFRAMED = ("gpt2", "gpt_neox", "bloom", "llama", "qwen", "mistral", "gemma")
_MARKS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def make_tokenizers(texts: Iterable[str]) -> dict[str, Tokenizer]:
    """A tokenizer of each kind: WordPiece as BERT has it, BPE of bytes as RoBERTa has it, Unigram as XLM-R has it."""
    texts = list(texts)
    by_bytes, pieces = Tokenizer(models.BPE()), Tokenizer(models.Unigram())
    by_bytes.pre_tokenizer, by_bytes.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(_MARKS.values())
    by_bytes.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    pieces.normalizer = normalizers.NFKC()
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return {"wordpiece": train_tokenizer(texts, 300), "bytes": by_bytes, "pieces": pieces}


def write_backbone(family: str, tokenizers: dict[str, Tokenizer], out: Path) -> None:
    """A backbone folder of a family: config, seeded random weights, tokenizer."""
    kind, settings = FAMILIES[family]
    tokenizer = Tokenizer.from_str(tokenizers[kind].to_str())
    special = SPECIAL if kind == "wordpiece" else _MARKS
    if kind != "wordpiece" and not family.startswith(_UNFRAMED):
        around = "$A </s>" if "t5" in family else "<s> $A </s>"
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=marks)
    if family == "xlnet":
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("</s>", "<mask>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s> <mask>", special_tokens=marks)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": tokenizer.token_to_id(special["pad_token"])}
    config = AutoConfig.for_model(family.partition("@")[0], **{**settings, **sizes, "architectures": []})
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(out)
