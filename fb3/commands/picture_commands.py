"""The command that makes vectors of pictures; `fb3.cli` wires it."""

from pathlib import Path
from typing import Annotated

import typer

from fb3.commands.options import Data, required
from fb3.errors import Fb3Error


def features(
    encoder: Annotated[
        str, typer.Argument(metavar="IMAGE_ENCODER", help="A folder, or a model of the hub: CLIP, ViT, Swin, …")
    ],
    data: Data = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE_OR_FOLDER",
            help="Pictures: an npz, a zip or a folder; may be given several times. Default: every npz of DIR with "
            "uint8 frames.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The npz to write, for data.frames.files.")] = None,
) -> None:
    """Turn pictures of items into vectors of an image encoder; a stopped command goes on where it was."""
    from fb3.models.backbone_files import IMAGE_KEY, check_backbone
    from fb3.system.files import check_output_path
    from fb3.system.progress import say

    out = check_output_path(required(out, "--out features.npz"), plain=True)
    if out.suffix != ".npz" or out.exists():
        wrong = "is there already" if out.exists() else "does not end in .npz"
        raise Fb3Error(f"{out}: {wrong}; choose another --out")
    check_backbone(encoder, IMAGE_KEY)
    from fb3.data.frames.frame_references import find_picture_files, open_pictures

    files = open_pictures(frames or find_picture_files(required(data, "--data DIR, or --frames")))
    for file in files:
        say(f"{file.path}: {sum(map(len, file.items.values()))} pictures of {len(file.items)} items")
    from fb3.data.frames.picture_files import pictures_of
    from fb3.models.image_encoder import ImageEncoder
    from fb3.prediction.picture_vector_file import write_picture_vectors
    from fb3.system.devices import pick_device

    items = {each: pictures_of(file, each) for file in files for each in file.items}
    digests = [file.digest() for file in files]
    model = ImageEncoder(encoder, pick_device())
    say(write_picture_vectors(model, items, out, name=Path(encoder).name, digests=digests).words)
