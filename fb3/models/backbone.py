"""Encoders: exported to an encoder folder, loaded from a hub id or a folder, or built from a config."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PretrainedConfig, PreTrainedTokenizerBase

import fb3.models.word_vectors  # noqa: F401 - makes its model known to AutoConfig and AutoModel
from fb3.errors import Fb3Error, one_line
from fb3.models.backbone_files import KEY, Source, find_backbone
from fb3.models.backbone_tokenizer import backbone_tokenizer, check_tokens, unknown_characters
from fb3.recipe.model import ModelSettings
from fb3.system.file_names import CONFIG, FRAME_ENCODER, FRAME_WIDTH, PROVENANCE
from fb3.system.files import read_json
from fb3.system.progress import say

_HIDDEN_DROPOUT = (
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout",
    "dropout_rate",
    "embedding_dropout",
    "mlp_dropout",
)
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
_PICKLE_MARKS = ("weights_only", "pytorch checkpoint", "PytorchStreamReader")  # in errors about a pytorch_model.bin
# Limits for a foreign config.json: buffers of its sizes are allocated before any weight is read.
_MOST_LAYERS, _LARGEST = 1000, 2**24


def export_encoder(
    settings: ModelSettings, out: Path, added: Sequence[str] = (), key: str = KEY, characters: Sequence[str] = ()
) -> None:
    """Writes config and fast tokenizer of a backbone to `out`, so that training and inference read the same files.

    Sets the recipe's dropouts and the padding id, and adds the `added` tokens and those of `characters` that the
    tokenizer does not know. An Fb3Error where a file, a fast tokenizer or a padding token is missing, the encoder lacks
    the dropout, the tokenizer knows all characters, or the hub cannot be reached.
    """
    source, place = find_backbone(settings.backbone, key), f"{key}={settings.backbone}"
    with explained(place, source):
        if source.is_folder:
            check_config(Path(source.name))
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=False, local_files_only=source.local)
        _auto_class(config)  # refuses a model that is no encoder
        tokenizer = backbone_tokenizer(source, place)
    if getattr(config, "auto_map", None):
        say(f"{place}: its code is not run (trust_remote_code is off), transformers' own is taken")
        del config.auto_map
    for name in (FRAME_WIDTH, FRAME_ENCODER):  # frames are the run's own matter
        if hasattr(config, name):
            delattr(config, name)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if config.pad_token_id is None:
        raise Fb3Error(f"{place}: neither config.json nor the tokenizer has a padding token")
    check_tokens(tokenizer, config, settings, place)
    _set_dropout(config, _HIDDEN_DROPOUT, "dropout", settings.dropout)
    _set_dropout(config, _ATTENTION_DROPOUT, "attention_dropout", settings.attention_dropout)
    if config.model_type == "big_bird":
        # Full from the start: at its first short batch BigBird leaves sparse attention for good, so that predictions
        # would depend on the batches before them.
        config.attention_type = "original_full"
    # lstrip: an added token swallows the space before it; the word after it keeps its own.
    known = _ids(tokenizer)
    tokenizer.add_tokens(
        [AddedToken(t, lstrip=True, normalized=False, special=True) for t in added], special_tokens=True
    )
    if characters:
        pretrained = source.is_folder and (Path(source.name) / PROVENANCE).is_file()  # fb3 pretrain has added them
        tokenizer.add_tokens(unknown_characters(tokenizer, characters, place, some=not pretrained))
    config.fb3_new_tokens = sorted(_ids(tokenizer) - known)
    config.vocab_size = max(config.vocab_size, max(_ids(tokenizer)) + 1)
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if not (out / "tokenizer.json").is_file():
        raise Fb3Error(f"{place}: the tokenizer wrote no tokenizer.json; convert it first")


def _ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set(tokenizer.get_vocab().values())


def _set_dropout(config: PretrainedConfig, names: Sequence[str], key: str, rate: float) -> None:
    known = [name for name in names if type(getattr(config, name, None)) in {float, int}]  # ALBERT has the int 0
    if rate and not known:
        raise Fb3Error(f"model.{key}={rate}: {config.model_type} has no such dropout; set it to 0")
    for name in known:
        setattr(config, name, rate)


def read_config(folder: Path) -> PretrainedConfig:
    """The encoder's config from an encoder folder; the hub is never asked."""
    check_config(folder)
    with explained(folder / CONFIG):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.architectures = config.architectures or []  # some versions of from_config loop over it, even over None
    return config


def pretrained_encoder(settings: ModelSettings, folder: Path, key: str = KEY) -> nn.Module:
    """The backbone in float32, under the encoder folder's config; an Fb3Error where weights are missing."""
    config = read_config(folder)
    source, place = find_backbone(settings.backbone, key), f"{key}={settings.backbone}"
    wanted = config.vocab_size
    with explained(place, source):
        options = {"local_files_only": source.local, "trust_remote_code": False}
        config.vocab_size = AutoConfig.from_pretrained(source.name, **options).vocab_size
        with without_report():
            encoder, report = _auto_class(config).from_pretrained(
                source.name,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the sizes
                weights_only=True,
                **options,
            )
    if wrong := sorted(report["mismatched_keys"]):
        name, there, described = wrong[0]
        raise Fb3Error(
            f"{place}: {name} is {list(there)} in the file and {list(described)} by config.json ({len(wrong)} such "
            "weights); take config, tokenizer and weights of one model"
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key)
    if missing:
        raise Fb3Error(
            f"{place}: {len(missing)} weights are not in the file, so they would be random: "
            f"{missing[:5]}; is it the encoder that config.json describes?"
        )
    _start_new_embeddings(encoder, wanted, getattr(config, "fb3_new_tokens", []))
    return encoder.float()


@torch.no_grad()
def _start_new_embeddings(encoder: nn.Module, size: int, new: Sequence[int]) -> None:
    """Makes room for `size` word embeddings; new tokens start at the mean of the old vocabulary (Hewitt 2021).

    The mean leaves out rows beyond that vocabulary: DeBERTa-v3 has 99 that no text ever trained.
    """
    rows = len(encoder.get_input_embeddings().weight)
    old = min([rows, *new])
    if size > rows:
        encoder.resize_token_embeddings(size, mean_resizing=False)
        new = range(old, size)
    weight = encoder.get_input_embeddings().weight
    weight[list(new)] = weight[:old].mean(0)


def random_encoder(folder: Path) -> nn.Module:
    """An encoder of random weights, float32, from the config of the encoder folder."""
    config = read_config(folder)
    with explained(folder / CONFIG):
        return _auto_class(config).from_config(config, trust_remote_code=False).float()


def empty_encoder(folder: Path) -> nn.Module:
    """An encoder whose parameters are on the meta device, to be assigned from a checkpoint; its buffers are real."""
    config = read_config(folder)
    with explained(folder / CONFIG), _parameters_on_meta():
        encoder = _auto_class(config).from_config(config, trust_remote_code=False)
    for module in encoder.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:  # created like a parameter, e.g. by zeros_like (I-BERT)
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    return encoder


def check_config(folder: Path) -> None:
    """Refuses a config.json that is broken or has sizes beyond any encoder's: buffers of that size would be made."""
    for key, value in read_json(folder / CONFIG).items():
        if "theta" in key:  # the period of rotary positions, no size
            continue
        sizes = [size for size in (value if isinstance(value, list) else [value]) if isinstance(size, int | float)]
        largest = _MOST_LAYERS if key.endswith(("layer", "layers", "blocks", "block_sizes")) else _LARGEST
        if any(abs(size) > largest for size in sizes):
            raise Fb3Error(f"{folder / CONFIG}: {key}={max(sizes, key=abs)}: more than {largest}; is it an encoder's?")


@contextmanager
def without_report() -> Iterator[None]:
    """Keeps transformers from telling missing weights: poolers may be missing, and others are refused here.

    Its progress bars are off from then on: fb3 shows its own.
    """
    transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


@contextmanager
def explained(place: object, source: Source | None = None) -> Iterator[None]:
    """Turns errors of transformers, tokenizers or torch into an Fb3Error that names `place`, a file or a backbone."""
    try:
        yield
    except (Fb3Error, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = one_line(error, 400)
        if "trust_remote_code" in words or "custom code" in words:
            raise Fb3Error(
                f"{place}: wants code of its own to be run (auto_map in config.json), and fb3 runs none: "
                "trust_remote_code is off; take a backbone that transformers itself has"
            ) from None
        if any(mark in words for mark in _PICKLE_MARKS):
            raise Fb3Error(
                f"{place}: its pytorch_model.bin holds more than tensors, or is broken, and is read with "
                f"weights_only=True; take the backbone's model.safetensors ({words[:150]})"
            ) from None
        if source and not source.is_folder and isinstance(error, OSError):
            hub = source.offline and f"{source.offline}, nor is a copy of it in its cache"
            raise Fb3Error(
                f"{place}: no folder of this name here, and the hub {hub or f'refused: {words}'}; give a folder with "
                "config.json, tokenizer and weights, or a model of the hub"
            ) from None
        raise Fb3Error(f"{place}: {words}{_saved_by(source)}") from None


def _saved_by(source: Source | None) -> str:
    """A note on the version of transformers that saved a folder, if another version failed to read it."""
    saved = read_json(Path(source.name) / CONFIG).get("transformers_version") if source and source.is_folder else None
    if saved in {None, transformers.__version__}:
        return ""
    return f" (saved by transformers {saved}, read by {transformers.__version__})"


def _auto_class(config: PretrainedConfig) -> Any:
    if not config.is_encoder_decoder and config.model_type != "t5":
        return AutoModel
    if type(config) not in AutoModelForTextEncoding._model_mapping:
        raise ValueError(f"{config.model_type} is an encoder with a decoder; take an encoder alone, or a T5")
    return AutoModelForTextEncoding


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Registers parameters on the meta device, where a random initialisation costs nothing.

    Buffers stay real, unlike under `torch.device("meta")`: position ids are not in the weight file.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
