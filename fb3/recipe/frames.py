"""Frames beside an item's text: where they are, and how a model reads them."""

from typing import Annotated, Literal

from pydantic import Field

from fb3.recipe.settings import Count, FileName, Listed, Probability, Settings, read_kind

FRAMES_COLUMN = "frames of data.frames"  # a column of tables of items: references to their frames


class FramesSettings(Settings):
    """Frames of a video, or other pictures, found by the item's id: vectors of an image encoder, or made into such."""

    files: Annotated[tuple[FileName, ...], Field(min_length=1), Listed]
    """Files with the frames of some items each. An item that none of them has is one without frames; a file that is
    absent is passed over, one at least is there. x.npz: ids, offsets (items + 1) and features (frames of all items,
    width): item i has features[offsets[i]:offsets[i+1]]. x.zip: {id}.npy for each item, (frames, width). With
    `encoder`: x.npz of ids, offsets and uint8 `frames` (pictures, height, width, 3), or a zip or folder of {id}.jpg or
    {id}/NAME.jpg in the natural order of their names."""
    most: Count = 32
    """Frames of an item that are read. Of more, training draws some anew each time, in their order, and inference takes
    them in even steps."""
    encoder: str | None = None
    """Image encoder that turns the pictures of `files` into vectors, with its own processor: a folder, or a model of
    the hub, such as CLIP's vision tower, ViT or Swin. The run and the bundle hold a copy. Vectors are computed once,
    and kept in FB3_CACHE (~/.cache/fb3); inference computes the `most` pictures of an item that it reads. none: `files`
    hold vectors."""


class SingleStreamSettings(Settings):
    """Frames among the text's tokens: [CLS] frames text [SEP], through all layers of one encoder."""

    kind: Literal["single_stream"] = "single_stream"
    """A linear layer turns a frame into an embedding, and a learned vector for each place stands for its time."""
    modality_dropout: Probability = 0.0
    """Probability that a training item with frames loses them or its text, each as often as the other."""


class DualStreamSettings(Settings):
    """Frames in a transformer of their own beside the text's, and attention between the two, both ways."""

    kind: Literal["dual_stream"]
    """The head reads the text's vector, the frames' mean, and the means of both after the attention; an item without
    frames still has its text's vector, and one without a text its frames'."""
    layers: Count = 2
    """Layers of the frames' transformer."""
    cross_layers: Count = 2
    """Layers of attention in each direction."""
    heads: Count | None = None
    """Attention heads of both, by which the encoder's width must divide; none: one for each 64 numbers of it."""
    dropout: Probability = 0.1
    """Dropout of both."""
    modality_dropout: Probability = 0.0
    """Probability that a training item with frames loses them or its text, each as often as the other."""


_FrameModel = SingleStreamSettings | DualStreamSettings
FrameModelSettings = Annotated[_FrameModel, Field(discriminator="kind"), read_kind(_FrameModel, "single_stream", {})]
