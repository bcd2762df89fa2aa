"""Models: encoder → pooling → head, built from a recipe and an encoder folder (config and tokenizer)."""

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

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
from fb3.models.poolings import build_pooling
from fb3.models.scorer import ModelOutput, Scorer
from fb3.models.surgery import operate, reinitialise
from fb3.recipe import Recipe

__all__ = ["ModelOutput", "Scorer", "build_scorer", "load_tokenizer"]


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
    if init == "pretrained":
        encoder = pretrained_encoder(recipe.model, folder)
        reinitialise(encoder, recipe.model.reinit_layers)
    else:
        encoder = random_encoder(folder) if init == "config" else empty_encoder(folder)
    limit = longest_input(encoder)
    if limit is not None and recipe.data.max_length > limit:
        raise Fb3Error(f"data.max_length={recipe.data.max_length}: the encoder has positions for {limit} tokens only")
    operate(encoder, recipe.model)
    use_blocked_attention(encoder)
    hidden = encoder.config.hidden_size
    depth = getattr(encoder.config, "num_hidden_layers", len(layer_stack(encoder)))
    pooling = build_pooling(recipe.model.pooling, hidden, depth)
    outputs = recipe.task.outputs(len(recipe.data.target_columns))
    head = build_head(recipe.model.head, pooling.width, outputs)
    scorer = Scorer(encoder, pooling, head)
    if init == "empty":
        scorer.pooling.to("meta")
        scorer.head.to("meta")
    return scorer


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
