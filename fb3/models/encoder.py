"""Encoders: loaded from a hub id or a folder, or built from a config; and the few cuts that a recipe asks for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer, PretrainedConfig

from fb3.errors import Fb3Error
from fb3.files import read_json
from fb3.layout import CONFIG, PADDED
from fb3.progress import say
from fb3.recipe.groups import ModelGroup

KEY, SECOND_KEY = "model.backbone", "model.stitch.backbone"  # as errors name them
_HIDDEN_DROPOUT = (
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout",
    "dropout_rate",
    "embedding_dropout",
    "mlp_dropout",
)
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OF_PICKLES = ("weights_only", "pytorch checkpoint", "PytorchStreamReader")  # in the errors of a pytorch_model.bin
# Of a config from elsewhere, whose buffers are made before any weight is read.
_MOST_LAYERS, _LARGEST = 1000, 2**24
_PROBE = 9  # tokens of a text that is only to show where positions are looked up
# Where the families of transformers keep their layers, lowest first.
_STACKS = (
    "encoder.layer",
    "encoder.layers",
    "encoder.blocks",
    "encoder.block",
    "encoder.albert_layer_groups",
    "transformer.layer",
    "layer",
    "layers",
)


def check_backbone(backbone: str, key: str = KEY) -> None:
    """Refuses a local backbone folder that lacks a file, by the file's name; a hub id is left to the hub.

    Raises:
        Fb3Error: the folder or a file in it is missing.
    """
    folder = Path(backbone).expanduser()
    if not folder.is_dir():
        if backbone.startswith((".", "/", "~")) or backbone.count("/") > 1:
            raise Fb3Error(f"{key}={backbone}: no such folder")
        return
    if not (folder / "config.json").is_file():
        raise Fb3Error(f"{key}={backbone}: config.json is missing; save the model with save_pretrained")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise Fb3Error(
            f"{key}={backbone}: the tokenizer is missing (tokenizer.json, or one of "
            f"{', '.join(_VOCABULARIES[1:])}); save it there with tokenizer.save_pretrained"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise Fb3Error(f"{key}={backbone}: the weights are missing ({_WEIGHTS[0]} or {_WEIGHTS[2]})")


def export_encoder(settings: ModelGroup, out: Path, added: Sequence[str] = (), key: str = KEY) -> None:
    """Writes config and fast tokenizer of a backbone to `out`, so that training and inference read the same files.

    The dropouts of the recipe are set in the config, its padding id is made definite, and the tokenizer gets the
    `added` tokens, for which the config makes room.

    Raises:
        Fb3Error: a missing file, no fast tokenizer, no padding token, a dropout that the encoder does not have, or the
            hub cannot be reached.
    """
    check_backbone(settings.backbone, key)
    backbone = (
        str(Path(settings.backbone).expanduser())
        if Path(settings.backbone).expanduser().is_dir()
        else settings.backbone
    )
    with _told(f"{key}={settings.backbone}"):
        if Path(backbone).is_dir():
            _check_config(Path(backbone))
        config = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
        _auto_class(config)  # refuses what is no encoder
        tokenizer = AutoTokenizer.from_pretrained(backbone, use_fast=True, trust_remote_code=False)
    if getattr(config, "auto_map", None):
        say(f"{key}={settings.backbone}: its code is not run (trust_remote_code is off), transformers' own is taken")
        del config.auto_map
    if not tokenizer.is_fast:
        raise Fb3Error(f"{key}={settings.backbone}: no fast tokenizer; convert it to a tokenizer.json first")
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if config.pad_token_id is None:
        raise Fb3Error(f"{key}={settings.backbone}: neither config.json nor the tokenizer has a padding token")
    _set_dropout(config, _HIDDEN_DROPOUT, "dropout", settings.dropout)
    _set_dropout(config, _ATTENTION_DROPOUT, "attention_dropout", settings.attention_dropout)
    if config.model_type == "big_bird":
        # Its sparse attention gives way to full attention for good at the first short batch, so that a prediction
        # would depend on the batches before it.
        config.attention_type = "original_full"
    # lstrip: the space before it belongs to it, so that the word after keeps its own
    tokenizer.add_tokens(
        [AddedToken(t, lstrip=True, normalized=False, special=True) for t in added], special_tokens=True
    )
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if not (out / "tokenizer.json").is_file():
        raise Fb3Error(f"{key}={settings.backbone}: the tokenizer wrote no tokenizer.json; convert it first")


def _set_dropout(config: PretrainedConfig, names: Sequence[str], key: str, rate: float) -> None:
    known = [name for name in names if type(getattr(config, name, None)) in {float, int}]  # ALBERT's 0 is an int
    if rate and not known:
        raise Fb3Error(f"model.{key}={rate}: {config.model_type} has no such dropout; set it to 0")
    for name in known:
        setattr(config, name, rate)


def read_config(folder: Path) -> PretrainedConfig:
    """The encoder's config from an encoder folder, without any look at the hub."""
    _check_config(folder)
    with _told(folder / CONFIG):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.architectures = config.architectures or []  # some versions of from_config loop over it, None or not
    return config


def pretrained_encoder(settings: ModelGroup, folder: Path, key: str = KEY) -> nn.Module:
    """The backbone's weights, in float32, under the config of the encoder folder.

    Raises:
        Fb3Error: weights are missing, so that layers would silently start at random.
    """
    config = read_config(folder)
    backbone = Path(settings.backbone).expanduser()
    source = str(backbone) if backbone.is_dir() else settings.backbone
    wanted = config.vocab_size
    with _told(f"{key}={settings.backbone}"):
        config.vocab_size = AutoConfig.from_pretrained(source, trust_remote_code=False).vocab_size
        encoder, report = _auto_class(config).from_pretrained(
            source, config=config, output_loading_info=True, trust_remote_code=False, weights_only=True
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key)
    if missing:
        raise Fb3Error(
            f"{key}={settings.backbone}: {len(missing)} weights are not in the file, so they would be random: "
            f"{missing[:5]}; is it the encoder that config.json describes?"
        )
    if wanted > config.vocab_size:
        _add_embeddings(encoder, wanted)
    return encoder.float()


@torch.no_grad()
def _add_embeddings(encoder: nn.Module, size: int) -> None:
    """More word embeddings; new ones start as the mean of the old (Hewitt 2021)."""
    old = encoder.get_input_embeddings().num_embeddings
    encoder.resize_token_embeddings(size, mean_resizing=False)
    weight = encoder.get_input_embeddings().weight
    weight[old:] = weight[:old].mean(0)


def random_encoder(folder: Path) -> nn.Module:
    """An encoder of random weights, float32, from the config of the encoder folder."""
    config = read_config(folder)
    with _told(folder / CONFIG):
        return _auto_class(config).from_config(config, trust_remote_code=False).float()


def empty_encoder(folder: Path) -> nn.Module:
    """The same without any weights: parameters on the meta device, to be assigned; buffers are real."""
    config = read_config(folder)
    with _told(folder / CONFIG), _parameters_on_meta():
        encoder = _auto_class(config).from_config(config, trust_remote_code=False)
    for module in encoder.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:  # made after the pattern of a parameter (I-BERT)
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    return encoder


def _check_config(folder: Path) -> None:
    """Refuses a config.json that is broken, or whose sizes no encoder has: buffers of that size would be made.

    Raises:
        Fb3Error: naming the key.
    """
    for key, value in read_json(folder / CONFIG).items():
        if "theta" in key:  # of rotary positions: a period, not a size
            continue
        sizes = [size for size in (value if isinstance(value, list) else [value]) if isinstance(size, int | float)]
        largest = _MOST_LAYERS if key.endswith(("layer", "layers", "blocks", "block_sizes")) else _LARGEST
        if any(abs(size) > largest for size in sizes):
            raise Fb3Error(f"{folder / CONFIG}: {key}={max(sizes, key=abs)}: more than {largest}; is it an encoder's?")


@contextmanager
def _told(source: object) -> Iterator[None]:
    """What transformers, tokenizers and torch raise of any kind for a file that they cannot use, in one line.

    Raises:
        Fb3Error: naming `source`.
    """
    try:
        yield
    except (Fb3Error, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:400]
        if "trust_remote_code" in words or "custom code" in words:
            raise Fb3Error(
                f"{source}: wants code of its own to be run (auto_map in config.json), and fb3 runs none: "
                "trust_remote_code is off; take a backbone that transformers itself has"
            ) from None
        if any(mark in words for mark in _OF_PICKLES):
            raise Fb3Error(
                f"{source}: its pytorch_model.bin holds more than tensors, or is broken, and is read with "
                f"weights_only=True; take the backbone's model.safetensors ({words[:150]})"
            ) from None
        raise Fb3Error(f"{source}: {words or type(error).__name__}") from None


def _auto_class(config: PretrainedConfig) -> Any:
    if not config.is_encoder_decoder and config.model_type != "t5":
        return AutoModel
    if type(config) not in AutoModelForTextEncoding._model_mapping:
        raise ValueError(f"{config.model_type} is an encoder with a decoder; take an encoder alone, or a T5")
    return AutoModelForTextEncoding


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Registers parameters on the meta device, where a random initialisation costs nothing.

    Unlike `torch.device("meta")` it leaves buffers alone: position ids are not in the weight file.
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


def layer_stack(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's layers, lowest first (blocks for Funnel; one shared layer for ALBERT); empty where unknown."""
    for path in _STACKS:
        module: Any = encoder
        for part in path.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.ModuleList) and len(module):
            return list(module)
    return []


def depth_of_parameters(encoder: nn.Module) -> tuple[dict[str, int], int]:
    """Depth of each parameter, by name, and the number of layers n.

    0 for the embeddings (relative positions included), 1 to n for the layers, n for what stands above or beside them.

    Raises:
        Fb3Error: the layers of this encoder are not known.
    """
    layers = layer_stack(encoder)
    if not layers:
        raise Fb3Error(f"{type(encoder).__name__}: its layers are not known; set optimizer.layer_decay=1.0")
    depth = {id(p): number for number, layer in enumerate(layers, 1) for p in layer.parameters()}
    depth |= {id(p): 0 for p in encoder.get_input_embeddings().parameters()}
    below = ("embed", "mask_emb", "relative_attention_bias")
    return {
        name: depth.get(id(p), 0 if any(word in name for word in below) else len(layers))
        for name, p in encoder.named_parameters()
    }, len(layers)


def longest_input(encoder: nn.Module) -> int | None:
    """Tokens for which the encoder has learned positions; none where positions are computed, or relative only.

    Found by asking: of the numbers of neighbouring tokens that it looks up in a table.

    Args:
        encoder: with weights, on the CPU.
    """
    tokens = getattr(encoder.config, PADDED, 0) or _PROBE
    ids = torch.full((1, tokens), 1 if encoder.config.pad_token_id != 1 else 2)
    with torch.no_grad(), _PositionsLookedUp(tokens) as seen:
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    return min(seen.limits, default=None)


class _PositionsLookedUp(TorchFunctionMode):
    """Notes how many positions the tables have in which neighbouring tokens look up neighbouring numbers."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.limits = tokens, set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is nn.functional.embedding:
            places = args[0].flatten()[: self.tokens]
            if len(places) == self.tokens and bool((places.diff() == 1).all()):
                self.limits.add(len(args[1]) - int(places[0]))
        return func(*args, **(kwargs or {}))
