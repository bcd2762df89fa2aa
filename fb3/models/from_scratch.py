"""An encoder from scratch: a tokenizer trained on texts, a config and random weights, saved as a backbone folder."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fb3.errors import Fb3Error, one_line
from fb3.recipe.model import ScratchSettings
from fb3.system.disk_space import disk_full_errors

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def build_backbone(settings: ScratchSettings, texts: Iterable[str], out: Path, seed: int) -> None:
    """Writes a backbone folder: a WordPiece tokenizer trained on the texts, a config, and random weights by the seed.

    An Fb3Error where transformers refuses the config.
    """
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    try:
        given = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, "architectures": []}
        config = AutoConfig.for_model(settings.model_type, **settings.config, **given)
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise Fb3Error(f"model.scratch: {one_line(error, 400)}") from None
    need = sum(parameter.nbytes for parameter in model.parameters()) + len(tokenizer.to_str().encode())
    with disk_full_errors(out, need):
        model.save_pretrained(out)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(out)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A cased WordPiece tokenizer with BERT's special tokens; [PAD] is 0.

    Its vocabulary is every character, alone and as a continuation, and the most frequent words. The library's own
    trainers break ties by hash order, so that the same texts and seed would give another model each time.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    vocabulary = [*SPECIAL.values(), *characters, *(f"##{c}" for c in characters), *frequent][:vocab_size]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer
