"""Models: encoder → pooling → head, built from a recipe and an encoder folder (config and tokenizer)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
from tokenizers import Tokenizer
from torch import nn

from fb3.errors import Fb3Error
from fb3.files import read_utf8
from fb3.layout import CONFIG, SECOND, TOKENIZER
from fb3.models.attention import use_blocked_attention
from fb3.models.deberta import use_fused_disentangled_attention
from fb3.models.encoder import (
    KEY,
    SECOND_KEY,
    empty_encoder,
    layer_stack,
    longest_input,
    pretrained_encoder,
    random_encoder,
    read_config,
)
from fb3.models.heads import build_head
from fb3.models.mixout import mix_out
from fb3.models.poolings import build_pooling, build_window_pooling
from fb3.models.scorer import ModelOutput, Scorer, StitchedScorer, Tower
from fb3.models.statistics import Alone, StatisticsNet
from fb3.models.surgery import operate, reinitialise
from fb3.recipe import Recipe
from fb3.recipe.groups import DataGroup, ModelGroup
from fb3.statistics import text_statistics
from fb3.texts import check_tokenizer, input_texts
from fb3.tokens import Encoded, special_tokens, tokenise

_LARGEST = 256 * 2**20  # bytes of a tokenizer.json; those of 250,000 tokens have 30 MB
__all__ = ["ModelOutput", "Scorer", "build_scorer", "encode_essays", "encode_texts", "load_tokenizer"]


def build_scorer(recipe: Recipe, folder: str | Path, *, init: Literal["pretrained", "config", "empty"]) -> Scorer:
    """The scorer of a recipe.

    Args:
        recipe: its `model`, `data` and `task` groups decide.
        folder: the encoder folder: config.json and tokenizer, as `export_encoder` writes it.
        init: pretrained: the backbone's weights; config: random ones; empty: parameters on the meta device, to be
            assigned from a checkpoint.

    Raises:
        Fb3Error: a file is missing or the encoder lacks what the recipe asks for.
    """
    folder = Path(folder)
    tower = _build_tower(recipe, recipe.model, folder, init, KEY)
    width, second = tower.pooling.width, None
    if stitch := recipe.model.stitch:
        second = _build_tower(recipe, recipe.model.second(), folder / SECOND, init, SECOND_KEY)
        width += second.pooling.width
        second.encoder.requires_grad_(stitch.frozen == "none")
        if stitch.frozen == "both":
            tower.encoder.requires_grad_(False)
    beside = StatisticsNet(width) if recipe.data.text.statistics else Alone(width)
    head = build_head(recipe.model.head, beside.width, recipe.task.outputs(len(recipe.data.target_columns)))
    if init == "empty":
        _to_meta(beside)
        _to_meta(head)
    return StitchedScorer(tower, second, beside, head) if second else Scorer(tower, beside, head)


def _build_tower(recipe: Recipe, settings: ModelGroup, folder: Path, init: str, key: str) -> Tower:
    if init == "pretrained":
        encoder = pretrained_encoder(settings, folder, key)
        reinitialise(encoder, settings.reinit_layers)
    else:
        encoder = random_encoder(folder) if init == "config" else empty_encoder(folder)
    limit = longest_input(encoder)
    longest = recipe.data.encoder_length()
    if limit is not None and longest > limit:
        key = "windows.length" if recipe.data.windows else "max_length"
        raise Fb3Error(f"data.{key}={longest}: the encoder has positions for {limit} tokens only")
    operate(encoder, settings)
    if init == "pretrained":
        mix_out(encoder, settings)  # after the freezing: only what trains has a start to go back to
    use_blocked_attention(encoder)
    use_fused_disentangled_attention(encoder)
    pooling = build_pooling(
        settings.pooling,
        encoder.config.hidden_size,
        depth=getattr(encoder.config, "num_hidden_layers", len(layer_stack(encoder))),
        vocabulary=encoder.config.vocab_size,
        prompt=_prompt(recipe, settings, folder),
    )
    over_windows = build_window_pooling(recipe.data.windows, pooling.width)
    if init == "empty":
        _to_meta(pooling)
        _to_meta(over_windows)
    return Tower(encoder, pooling, over_windows)


def _prompt(recipe: Recipe, settings: ModelGroup, folder: Path) -> range:
    """The positions of the targets' tokens; read from the tokenizer only where they are wanted."""
    if settings.pooling.kind != "target_tokens":
        return range(0)
    first = len(special_tokens(load_tokenizer(folder)[0])[0])
    return range(first, first + len(recipe.data.target_columns))


def _to_meta(module: nn.Module) -> None:
    """Parameters only: buffers are filled in place."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def load_tokenizer(folder: str | Path) -> tuple[Tokenizer, int]:
    """The fast tokenizer of an encoder folder, read without transformers, and the padding id.

    Raises:
        Fb3Error: a file is missing or broken.
    """
    path = Path(folder) / TOKENIZER
    text = read_utf8(path, _LARGEST)
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("a")  # some broken files fail here only
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception for a broken file; a panic of the library's is no Exception
        raise Fb3Error(f"{path}: cannot be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pad = read_config(Path(folder)).pad_token_id
    if not isinstance(pad, int):
        raise Fb3Error(f"{Path(folder) / CONFIG}: pad_token_id is {pad!r}; want the padding token's number")
    return tokenizer, pad


def encode_essays(essays: pd.DataFrame, folder: str | Path, data: DataGroup) -> Encoded:
    """What a scorer reads of N essays: tokens, and the texts' statistics where the recipe wants them.

    Args:
        essays: as `read_essays` returns them.
        folder: the encoder folder.
        data: what happens to a text.

    Raises:
        Fb3Error: as in `encode_texts`.
    """
    encoded = encode_texts(input_texts(essays, data), folder, data)
    if not data.text.statistics:
        return encoded
    return replace(encoded, statistics=text_statistics(essays[data.text_column].tolist()))


def encode_texts(texts: Sequence[str], folder: str | Path, data: DataGroup) -> Encoded:
    """N texts as tokens of an encoder folder, and as those of its second encoder where it has one.

    Raises:
        Fb3Error: a file is missing or broken; the recipe asks of a tokenizer what it cannot do.
    """
    tokenizer, pad = load_tokenizer(folder)
    check_tokenizer(tokenizer, data)
    encoded = tokenise(texts, tokenizer, pad, data)
    if not (Path(folder) / SECOND).is_dir():
        return encoded
    return replace(encoded, second=encode_texts(texts, Path(folder) / SECOND, data))
