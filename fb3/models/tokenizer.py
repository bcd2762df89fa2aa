"""A backbone's tokenizer as its files have it: some versions of transformers leave out parts of them."""

from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS
from transformers.utils import cached_file

from fb3.backbone_files import Source
from fb3.encoding import read_tokenizer
from fb3.errors import Fb3Error
from fb3.layout import TOKENIZER
from fb3.progress import say
from fb3.recipe.groups import ModelGroup
from fb3.tokens import special_tokens

_REBUILDS = int(transformers.__version__.split(".")[0]) >= 5
# Classes whose sentencepiece model transformers' converter turns into what sentencepiece itself does.
_CONVERTED = {"DebertaV2Tokenizer", "BigBirdTokenizer"}
_PROBE = "ﬁne…\u00a0text\n\nof  lines "
# Classes that mark one end only, by the token that they put there; GPT-2's and its like mark none.
_ONE_END = {"LlamaTokenizer": "bos", "GemmaTokenizer": "bos", "T5Tokenizer": "eos", "PegasusTokenizer": "eos"}
_FIRST_TOKEN = {"cls", "pooler", "lstm_layers", "gru_layers", "attention_layers"}  # poolings that read it alone


def backbone_tokenizer(source: Source, place: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a backbone, which reads a text as the backbone's pretraining did.

    Args:
        source: the backbone.
        place: names it in messages.

    Raises:
        Fb3Error: no fast tokenizer, one without words, or one that leaves its own special tokens out.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.name, use_fast=True, trust_remote_code=False, local_files_only=source.local
        )
    except Exception:
        if source.is_folder and (Path(source.name) / TOKENIZER).is_file():
            read_tokenizer(Path(source.name) / TOKENIZER)  # says what is wrong with it where that is what failed
        raise
    if not tokenizer.is_fast:
        raise Fb3Error(f"{place}: no fast tokenizer; convert it to a tokenizer.json first")
    if _REBUILDS and isinstance(tokenizer.backend_tokenizer.model, models.Unigram):
        _take_parts_of_files(tokenizer, source, place)
    words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).keys() - set(tokenizer.all_special_tokens)
    if not words:
        raise Fb3Error(
            f"{place}: its tokenizer ({_kind(tokenizer)}) knows no words: the files of its vocabulary are missing or "
            "of another class; save it there with tokenizer.save_pretrained"
        )
    _check_frame(tokenizer, place)
    return tokenizer


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    return type(tokenizer).__name__.removesuffix("Fast")


def _take_parts_of_files(tokenizer: PreTrainedTokenizerBase, source: Source, place: str) -> None:
    """Puts back normaliser and frame: transformers 5 builds a Unigram tokenizer from its vocabulary alone.

    Without the normaliser "…" and a non-breaking space are unknown tokens to DeBERTa-v3, which saw "..." and a space.
    """
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(source.name, TOKENIZER, local_files_only=source.local, **options)
    if file:
        filed = Tokenizer.from_file(file)
    elif _kind(tokenizer) in _CONVERTED and getattr(tokenizer, "vocab_file", None):
        filed = SLOW_TO_FAST_CONVERTERS[_kind(tokenizer)](tokenizer).converted()
    else:
        return
    built = tokenizer.backend_tokenizer
    if filed.encode(_PROBE).ids == built.encode(_PROBE).ids:
        return
    built.normalizer, built.pre_tokenizer = filed.normalizer, filed.pre_tokenizer
    if filed.post_processor is not None:
        built.post_processor = filed.post_processor
    said = "tokenizer.json" if file else "sentencepiece model"
    say(f"{place}: transformers {transformers.__version__} reads its {said} in part; fb3 takes all of it")


def _check_frame(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Sees to it that a tokenizer which has special tokens for the ends of a text puts them there.

    Raises:
        Fb3Error: it does not, and what it should do is not certain.
    """
    kind, backend = _kind(tokenizer), tokenizer.backend_tokenizer
    framed = {*(frame := special_tokens(backend))[0], *frame[1]}
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    if None in ends:
        one = _ONE_END.get(kind)
        wanted = one and tokenizer.init_kwargs.get(f"add_{one}_token") is not False
        ends = (getattr(tokenizer, f"{one}_token_id"),) if wanted else ()
    if not ends or framed & {*ends, tokenizer.bos_token_id, tokenizer.eos_token_id}:
        return
    if kind == "DebertaV2Tokenizer":
        first, last = tokenizer.cls_token, tokenizer.sep_token
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, ends[0]), (last, ends[1])],
        )
        say(f"{place}: its tokenizer put no {first} and {last} around a text (transformers 5.0-5.3); fb3 adds them")
        return
    tokens = " and ".join(map(str, tokenizer.convert_ids_to_tokens(ends)))
    raise Fb3Error(
        f"{place}: its tokenizer ({kind}, transformers {transformers.__version__}) has {tokens} and puts none around a "
        "text, so that the encoder would read what it was not trained on; save its tokenizer.json there with another "
        "version of transformers, with which tokenizer('a') shows them"
    )


def check_tokens(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, settings: ModelGroup, place: str
) -> None:
    """Refuses a tokenizer of another encoder, and a pooling that would take a word for the token of the whole text.

    Raises:
        Fb3Error: naming the mend.
    """
    words = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if words > config.vocab_size:
        raise Fb3Error(
            f"{place}: its tokenizer has {words:,} tokens and config.json gives the weights {config.vocab_size:,} "
            "(vocab_size); take the tokenizer that belongs to these weights"
        )
    before, after = special_tokens(tokenizer.backend_tokenizer)
    if settings.pooling.kind in _FIRST_TOKEN and not before:
        ends = " ".join(tokenizer.convert_ids_to_tokens(after))
        raise Fb3Error(
            f"{place}: model.pooling.kind={settings.pooling.kind} reads the first token, and this tokenizer puts none "
            f"before a text ({f'{ends} stand after it' if ends else 'nor after it'}); take mean or attention"
        )
