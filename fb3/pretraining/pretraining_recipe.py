"""The recipe that the training loop follows in pretraining: the `pretrain` group in the place of fine-tuning's."""

from collections.abc import Iterator
from contextlib import contextmanager

from fb3.errors import DiskFull, Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.model import ModelSettings, PlainPoolingSettings
from fb3.recipe.pretraining import PretrainingSettings
from fb3.recipe.training import AdamWSettings, LinearScheduleSettings
from fb3.system.progress import say

# Keys of fine-tuning in the loop's messages, and pretraining's own in their place.
_KEYS = {
    "train.batch_size": "pretrain.batch_size",
    "train.accumulation": "pretrain.accumulation",
    "data.max_length": "pretrain.length",
    "optimizer.encoder_rate": "pretrain.encoder_rate",
    "optimizer.clip": "pretrain.clip",
    "schedule.warmup_share": "pretrain.warmup_share",
    "model.dropout": "pretrain.dropout",
    "model.attention_dropout": "pretrain.attention_dropout",
}


def pretraining_recipe(recipe: Recipe) -> Recipe:
    """A recipe whose groups say what pretraining does, for the training loop.

    Backbone, files, texts, frames, seed, precision, saves and evaluations are the given recipe's. Freezing,
    augmentation, tricks and whatever else serves scores is left out.
    """
    settings = recipe.pretrain or PretrainingSettings()
    dropouts = {"dropout": settings.dropout, "attention_dropout": settings.attention_dropout}
    model = ModelSettings(
        backbone=recipe.model.backbone,
        scratch=recipe.model.scratch,
        pooling=PlainPoolingSettings(kind="mean"),
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        **dropouts,
    )
    length = settings.length or recipe.data.encoder_length()
    data = {"max_length": length, "windows": None, "augment": None, "weight_column": None, "weight_form": "weight"}
    if recipe.data.frames and recipe.model.frames.kind != "single_stream":
        say(f"model.frames.kind={recipe.model.frames.kind}: its encoder reads texts alone, and so does pretraining")
        data["frames"] = None
    loop = {name: getattr(settings, name) for name in ("epochs", "batch_size", "accumulation")}
    optimizer = AdamWSettings(
        encoder_rate=settings.encoder_rate,
        head_rate=settings.head_rate,
        layer_decay=1.0,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
    )
    return Recipe(
        model=model,
        data=recipe.data.model_copy(update=data),
        folds=recipe.folds,
        train=recipe.train.model_copy(update={**loop, "sampling": None, "soup": None, "keep": "best"}),
        optimizer=optimizer,
        schedule=LinearScheduleSettings(kind="linear", warmup_share=settings.warmup_share),
        pretrain=settings,
        competition=recipe.competition,
    )


@contextmanager
def own_keys() -> Iterator[None]:
    """Names pretraining's keys in errors that name fine-tuning's."""
    try:
        yield
    except DiskFull:
        raise
    except Fb3Error as error:
        words = str(error)
        for key, own in _KEYS.items():
            words = words.replace(key, own)
        raise (error if words == str(error) else type(error)(words)) from None
