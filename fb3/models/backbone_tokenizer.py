"""A backbone's tokenizer, complete: some versions of transformers leave out parts of its files."""

from collections.abc import Sequence
from pathlib import Path

import transformers
from tokenizers import AddedToken, models, processors
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS
from transformers.utils import cached_file

from fb3.data.tokenizer import read_tokenizer, special_tokens
from fb3.errors import Fb3Error
from fb3.models.backbone_files import Source
from fb3.recipe.model import OF_FIRST_TOKEN, ModelSettings
from fb3.system.file_names import TOKENIZER
from fb3.system.progress import say

_REBUILDS = int(transformers.__version__.split(".")[0]) >= 5
_PROBE = "ﬁne…\u00a0text\n\nof  lines "
# Tokenizers that mark only one end of a text, and the token they put there. GPT-2's mark neither.
_ONE_END = {"LlamaTokenizer": "bos", "GemmaTokenizer": "bos", "T5Tokenizer": "eos", "PegasusTokenizer": "eos"}


def backbone_tokenizer(source: Source, place: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a backbone, which reads a text as the backbone's pretraining did.

    An Fb3Error, which begins with `place`, where there is no fast tokenizer, it knows no words, or it leaves out its
    own special tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.name, use_fast=True, trust_remote_code=False, local_files_only=source.local
        )
    except Exception:
        if source.is_folder and (Path(source.name) / TOKENIZER).is_file():
            read_tokenizer(Path(source.name) / TOKENIZER)  # raises the clearer error if the file itself is broken
        raise
    if not tokenizer.is_fast:
        raise Fb3Error(f"{place}: no fast tokenizer; convert it to a tokenizer.json first")
    if _REBUILDS and isinstance(tokenizer.backend_tokenizer.model, models.Unigram):
        _take_normaliser(tokenizer, source, place)
    words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).keys() - set(tokenizer.all_special_tokens)
    if not words:
        raise Fb3Error(
            f"{place}: its tokenizer ({_kind(tokenizer)}) knows no words: the files of its vocabulary are missing or "
            "of another class; save it there with tokenizer.save_pretrained"
        )
    check_frame(tokenizer, place)
    return tokenizer


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    return type(tokenizer).__name__.removesuffix("Fast")


def _take_normaliser(tokenizer: PreTrainedTokenizerBase, source: Source, place: str) -> None:
    """Restores the normaliser that the files have: transformers 5 builds some sentencepiece tokenizers without it.

    It turns "…" into "..." and a non-breaking space into a space; without it both are unknown tokens.
    """
    built, kind = tokenizer.backend_tokenizer, _kind(tokenizer)
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if file := cached_file(source.name, TOKENIZER, local_files_only=source.local, **options):
        normaliser = read_tokenizer(Path(file)).normalizer
    elif kind in SLOW_TO_FAST_CONVERTERS and str(getattr(tokenizer, "vocab_file", None)).endswith(".model"):
        converter = SLOW_TO_FAST_CONVERTERS[kind](tokenizer)
        normaliser = converter.normalizer(converter.proto)
    else:
        return
    before = built.encode(_PROBE).ids
    if normaliser is not None:
        built.normalizer = normaliser
    if built.encode(_PROBE).ids != before:
        say(
            f"{place}: transformers {transformers.__version__} leaves the normaliser of "
            f"{'tokenizer.json' if file else Path(tokenizer.vocab_file).name} out; fb3 takes it"
        )


def unknown_characters(
    tokenizer: PreTrainedTokenizerBase, characters: Sequence[str], place: str, some: bool = True
) -> list[AddedToken]:
    """A token for each character that becomes the unknown token; an Fb3Error where none does and `some` should."""
    encodings = tokenizer.backend_tokenizer.encode_batch(list(characters), add_special_tokens=False)
    unknown = [c for c, e in zip(characters, encodings, strict=True) if tokenizer.unk_token_id in e.ids]
    if not unknown and not some:
        return []
    if not unknown:
        raise Fb3Error(
            f"data.text.new_tokens: the tokenizer of {place} knows all {len(characters)} characters that occur so "
            "often; leave it out, or give a smaller number"
        )
    say(f"{place}: {len(unknown)} characters that its tokenizer does not know get a new token each")
    return [AddedToken(each, normalized=False) for each in unknown]


def check_frame(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Makes a tokenizer put its special tokens around a text; an Fb3Error where their right places are not certain."""
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
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, settings: ModelSettings, place: str
) -> None:
    """Refuses a tokenizer of another encoder, and first-token pooling where that token is a word: an Fb3Error."""
    words = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if words > config.vocab_size:
        raise Fb3Error(
            f"{place}: its tokenizer has {words:,} tokens and config.json gives the weights {config.vocab_size:,} "
            "(vocab_size); take the tokenizer that belongs to these weights"
        )
    before, after = special_tokens(tokenizer.backend_tokenizer)
    if settings.pooling.kind in OF_FIRST_TOKEN and not before:
        ends = " ".join(tokenizer.convert_ids_to_tokens(after))
        raise Fb3Error(
            f"{place}: model.pooling.kind={settings.pooling.kind} reads the first token, and this tokenizer puts none "
            f"before a text ({f'{ends} stand after it' if ends else 'nor after it'}); take mean or attention"
        )
