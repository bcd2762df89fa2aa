"""Models: encoder → pooling → head, built from a recipe and an encoder folder (config and tokenizer)."""

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from torch import nn

from fb3.errors import Fb3Error
from fb3.models.attention import use_blocked_attention
from fb3.models.encoder import (
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
from fb3.models.scorer import ModelOutput, Scorer
from fb3.models.surgery import operate, reinitialise
from fb3.recipe import Recipe
from fb3.tokens import special_tokens

__all__ = ["ModelOutput", "Scorer", "build_scorer", "load_tokenizer"]


def build_scorer(recipe: Recipe, folder: str | Path, *, init: Literal["pretrained", "config", "empty"]) -> Scorer:
    """The scorer of a recipe.

    Args:
        recipe: its `model` and `data` groups decide.
        folder: the encoder folder: config.json and tokenizer, as `export_encoder` writes it.
        init: pretrained: the backbone's weights; config: random ones; empty: parameters on the meta device, to be
            assigned from a checkpoint.

    Raises:
        Fb3Error: a file is missing or the encoder lacks what the recipe asks for.
    """
    folder = Path(folder)
    if init == "pretrained":
        encoder = pretrained_encoder(recipe.model, folder)
        reinitialise(encoder, recipe.model.reinit_layers)
    else:
        encoder = random_encoder(folder) if init == "config" else empty_encoder(folder)
    limit = longest_input(encoder)
    longest = recipe.data.encoder_length()
    if limit is not None and longest > limit:
        key = "windows.length" if recipe.data.windows else "max_length"
        raise Fb3Error(f"data.{key}={longest}: the encoder has positions for {limit} tokens only")
    operate(encoder, recipe.model)
    if init == "pretrained":
        mix_out(encoder, recipe.model)  # after the freezing: only what trains has a start to go back to
    use_blocked_attention(encoder)
    depth = getattr(encoder.config, "num_hidden_layers", len(layer_stack(encoder)))
    pooling = build_pooling(
        recipe.model.pooling,
        encoder.config.hidden_size,
        depth,
        vocabulary=encoder.config.vocab_size,
        prompt=_prompt(recipe, folder),
    )
    over_windows = build_window_pooling(recipe.data.windows, pooling.width)
    head = build_head(recipe.model.head, pooling.width, len(recipe.data.target_columns))
    scorer = Scorer(encoder, pooling, over_windows, head)
    if init == "empty":
        for module in (scorer.pooling, scorer.over_windows, scorer.head):
            _to_meta(module)
    return scorer


def _prompt(recipe: Recipe, folder: Path) -> range:
    """The positions of the targets' tokens; read from the tokenizer only where they are wanted."""
    if recipe.model.pooling.kind != "target_tokens":
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
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing or broken file
        raise Fb3Error(f"{path}: cannot be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, int(read_config(Path(folder)).pad_token_id)
