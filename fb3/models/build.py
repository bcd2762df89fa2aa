"""Models: encoder → pooling → head, built from a recipe and an encoder folder (config and tokenizer)."""

from pathlib import Path
from typing import Literal

from torch import nn

from fb3.data.tokenizer import load_tokenizer, special_tokens
from fb3.errors import Fb3Error
from fb3.models.backbone import empty_encoder, pretrained_encoder, random_encoder
from fb3.models.backbone_files import FEATURE_KEY, KEY, SECOND_KEY, frame_weights
from fb3.models.dry_run import make_up_weights
from fb3.models.frame_embeddings import FrameEmbeddings
from fb3.models.frame_scorers import DualStreamScorer, SingleStreamScorer
from fb3.models.heads import build_head
from fb3.models.image_tower import PictureEmbeddings, build_image_tower
from fb3.models.kernels.blocked_attention import use_blocked_attention
from fb3.models.kernels.deberta import use_fused_disentangled_attention
from fb3.models.layer_stack import layer_stack
from fb3.models.mixout import mix_out
from fb3.models.poolings.build import build_pooling, build_window_pooling
from fb3.models.poolings.layer_poolings import LayerMeansPooling
from fb3.models.scorer import Scorer, StitchedScorer
from fb3.models.statistics_net import NoStatistics, StatisticsNet
from fb3.models.surgery import operate, reinitialise
from fb3.models.towers import Tower
from fb3.recipe import Recipe
from fb3.recipe.data import DataSettings
from fb3.recipe.estimator import EmbeddingsSettings
from fb3.recipe.model import ModelSettings
from fb3.system.file_names import CONFIG, FRAME_PIXELS, FRAME_WIDTH, SECOND, image_encoder_folder
from fb3.system.files import read_json

_EMPTY = {"empty", "trial"}  # parameters on the meta device

Init = Literal["pretrained", "config", "empty", "trial"]


def build_scorer(recipe: Recipe, folder: str | Path, *, init: Init) -> Scorer:
    """The scorer of a recipe; an Fb3Error where a file is missing, or the encoder cannot do what the recipe asks for.

    Args:
        recipe: its `model`, `data` and `task` groups decide.
        folder: the encoder folder: config.json and tokenizer, written by `export_encoder`.
        init: pretrained: the backbone's weights; config: random weights; empty: parameters on the meta device, to be
            assigned from a checkpoint; trial: like empty, with made-up encoder weights that take little memory.
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
    dual = recipe.data.frames and recipe.model.frames.kind == "dual_stream"
    if dual:
        width = DualStreamScorer.width(width, tower.encoder.config.hidden_size)
    beside = StatisticsNet(width) if recipe.data.text.statistics else NoStatistics(width)
    head = build_head(recipe.model.head, beside.width, recipe.task.outputs(len(recipe.data.target_columns)))
    if second:
        scorer = StitchedScorer(tower, second, beside, head)
    elif recipe.data.frames:
        kind = DualStreamScorer if dual else SingleStreamScorer
        frames = build_frame_embeddings(recipe, tower.encoder, folder, init)
        scorer = kind(tower, frames, recipe.model.frames, beside, head)
    else:
        scorer = Scorer(tower, beside, head)
    if init in _EMPTY:
        parts = [part for tower in scorer.towers().values() for part in tower.named_children()]
        for name, part in parts:
            if name not in ("encoder", "second"):
                _to_meta(part)
    return scorer


def build_frame_embeddings(recipe: Recipe, encoder: nn.Module, folder: Path, init: Init) -> FrameEmbeddings:
    """The frames' embeddings; where they join the encoder's own, a pretraining's, or new ones on their scale."""
    config = read_json(folder / CONFIG, {FRAME_WIDTH: int})
    words, single = encoder.get_input_embeddings().weight, recipe.model.frames.kind == "single_stream"
    hidden = words.shape[1] if single else encoder.config.hidden_size
    if recipe.optimizer.image_rate is None:
        frames = FrameEmbeddings(config[FRAME_WIDTH], hidden, recipe.data.frames.most)
    else:
        pixels = read_json(folder / CONFIG, {FRAME_PIXELS: dict})[FRAME_PIXELS]
        images = build_image_tower(image_encoder_folder(folder.parent), pixels, weights=init == "pretrained")
        frames = PictureEmbeddings(images, hidden, recipe.data.frames.most)
    if single and init not in _EMPTY:
        frames.start_like(words)
    if single and init == "pretrained" and (file := frame_weights(recipe.model.backbone)):
        frames.start_from(file)
    return frames


def build_embedder(settings: EmbeddingsSettings, data: DataSettings, source: Scorer | Path, *, init: Init) -> Scorer:
    """A scorer without a head, to be asked for its pooled vectors alone, (B, layers · D): means of an encoder's layers.

    Args:
        settings: name the layers, and with `pretrained` the encoder. Without layers, the last four, or all of fewer.
        data: says whether an essay has windows; it gets the mean of their vectors.
        source: a fine-tuned scorer, whose first encoder is taken, or the encoder folder of a plain encoder.
        init: a plain encoder's, see `build_scorer`.
    """
    encoder = source.encoder if isinstance(source, Scorer) else _build_plain(settings, source, init)
    depth = getattr(encoder.config, "num_hidden_layers", len(layer_stack(encoder)))
    layers = settings.layers or tuple(range(1, min(4, depth) + 1))
    if max(layers) > depth:
        raise Fb3Error(f"{FEATURE_KEY}={settings.encoder}: layers={list(layers)}, and it has {depth}")
    pooling = LayerMeansPooling(encoder.config.hidden_size, layers, settings.normalise)
    windows = data.windows and data.windows.model_copy(update={"pool": "mean"})
    tower = Tower(encoder, pooling, build_window_pooling(windows, pooling.width))
    return Scorer(tower, NoStatistics(pooling.width), nn.Identity())


def _build_plain(settings: EmbeddingsSettings, folder: Path, init: Init) -> nn.Module:
    if init == "pretrained":
        encoder = pretrained_encoder(ModelSettings(backbone=settings.encoder), folder, FEATURE_KEY)
    else:
        encoder = empty_encoder(folder)
    if init == "trial":
        make_up_weights(encoder)
    use_blocked_attention(encoder)
    use_fused_disentangled_attention(encoder)
    return encoder


def _build_tower(recipe: Recipe, settings: ModelSettings, folder: Path, init: str, key: str) -> Tower:
    if init == "pretrained":
        encoder = pretrained_encoder(settings, folder, key)
        reinitialise(encoder, settings.reinit_layers)
    else:
        encoder = random_encoder(folder) if init == "config" else empty_encoder(folder)
    if init == "trial":
        make_up_weights(encoder)
    width = getattr(encoder.config, "hidden_size", None)
    if not isinstance(width, int):
        raise Fb3Error(f"{key}={settings.backbone}: {type(encoder).__name__} is no encoder of texts; take another one")
    operate(encoder, settings)
    if init == "pretrained":
        mix_out(encoder, settings)  # after freezing: only trained weights have a start to mix with
    use_blocked_attention(encoder)
    use_fused_disentangled_attention(encoder)
    pooling = build_pooling(
        settings.pooling,
        width,
        depth=getattr(encoder.config, "num_hidden_layers", len(layer_stack(encoder))),
        vocabulary=encoder.config.vocab_size,
        prompt=_prompt(recipe, settings, folder),
    )
    over_windows = build_window_pooling(recipe.data.windows, pooling.width)
    return Tower(encoder, pooling, over_windows)


def _prompt(recipe: Recipe, settings: ModelSettings, folder: Path) -> range:
    """Positions of the targets' tokens; opens the tokenizer only where the pooling reads them."""
    if settings.pooling.kind != "target_tokens":
        return range(0)
    first = len(special_tokens(load_tokenizer(folder)[0])[0])
    return range(first, first + len(recipe.data.target_columns))


def _to_meta(module: nn.Module) -> None:
    """Moves parameters only: loading assigns parameters and fills buffers in place."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
