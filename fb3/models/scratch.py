"""An encoder from nothing: a tokenizer trained on texts, a config, random weights, saved as a backbone folder."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fb3.errors import Fb3Error
from fb3.recipe.groups import Scratch

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def build_backbone(settings: Scratch, texts: Iterable[str], out: Path, seed: int) -> None:
    """Writes a backbone folder: tokenizer (WordPiece, Schuster & Nakajima 2012), config, random weights.

    Args:
        settings: model type, vocabulary size and config keys.
        texts: what the tokenizer is trained on.
        out: the folder.
        seed: of the weights.

    Raises:
        Fb3Error: transformers refuses the config.
    """
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    try:
        config = AutoConfig.for_model(
            settings.model_type, **settings.config, vocab_size=tokenizer.get_vocab_size(), pad_token_id=0
        )
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise Fb3Error(f"model.scratch: {' '.join(str(error).split())[:400]}") from None
    model.save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(out)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A cased WordPiece tokenizer with BERT's special tokens; [PAD] is 0."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer
