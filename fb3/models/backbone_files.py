"""Checks of a backbone's files, by name and first bytes, before torch is imported; and whether the hub can be asked."""

import importlib
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fb3.errors import Fb3Error
from fb3.system.file_contents import placeholder_problem, weights_problem
from fb3.system.file_names import CONFIG, FRAME_WEIGHTS, FRAME_WIDTH, IMAGE_PROCESSOR, TOKENIZER, WEIGHTS
from fb3.system.files import read_json

KEY, SECOND_KEY = "model.backbone", "model.stitch.backbone"  # the names in errors
FEATURE_KEY = "estimator.features: encoder"
IMAGE_KEY, FRAMES_KEY = "IMAGE_ENCODER", "data.frames.encoder"
_VOCABULARIES = (TOKENIZER, "vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model")
_PROCESSORS = (IMAGE_PROCESSOR, "processor_config.json")
_BESIDE = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BIN = "pytorch_model.bin"
_WEIGHTS = (WEIGHTS, f"{WEIGHTS}.index.json", _BIN, f"{_BIN}.index.json")  # transformers reads the first that exists
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_SECONDS = 10  # timeout of a connection to the hub


@dataclass(frozen=True)
class Source:
    """A folder, or a hub id, that a backbone is read from; `offline` is the reason why the hub is not asked, if any."""

    name: str
    is_folder: bool
    offline: str = ""

    @property
    def local(self) -> bool:
        """Whether only local files may be read, not the hub."""
        return self.is_folder or bool(self.offline)


def find_backbone(backbone: str, key: str = KEY) -> Source:
    """The source of a backbone, checked. The hub is tried first: transformers would wait for it half a minute."""
    check_backbone(backbone, key)
    folder = _folder(backbone)
    return Source(str(folder), True) if folder.is_dir() else Source(backbone, False, unreachable())


def check_backbone(backbone: str, key: str = KEY) -> None:
    """Refuses a backbone folder where a file is missing or of another kind: an Fb3Error names folder, file and cure.

    A hub id is left to the hub, and `scratch` to `build_backbone`. Beside an image encoder stands its processor, beside
    others their tokenizer.
    """
    folder, place = _folder(backbone), f"{key}={backbone}"
    of_images = key in (IMAGE_KEY, FRAMES_KEY)
    beside, names = ("image_processor", _PROCESSORS) if of_images else ("tokenizer", _VOCABULARIES)
    if backbone == "scratch":
        return
    if folder.is_file():
        raise Fb3Error(f"{place}: a file; give the folder with {CONFIG}, {beside} and weights")
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(backbone):
            raise Fb3Error(f"{place}: no such folder")
        return
    if not (folder / CONFIG).is_file():
        raise Fb3Error(f"{place}: {CONFIG} is missing; save the model with save_pretrained")
    if not any((folder / name).is_file() for name in names) and not (of_images and is_timm(folder)):
        raise Fb3Error(
            f"{place}: the {beside} is missing ({names[0]}, or one of {', '.join(names[1:])}); "
            f"save it there with {beside}.save_pretrained"
        )
    taken = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if not taken:
        raise Fb3Error(f"{place}: the weights are missing ({WEIGHTS} or {_BIN})")
    for name in (CONFIG, *names, *_BESIDE):
        if (folder / name).is_file():
            _refuse(placeholder_problem, folder / name, place)
    if not of_images:
        _check_sentencepiece(folder, place)
    for name in _shards(folder, taken, place) if taken.endswith(".json") else [taken]:
        _refuse(weights_problem, folder / name, place)


def is_timm(folder: Path) -> bool:
    """Whether a folder is of the package timm, whose config.json says how pictures are prepared too."""
    return "pretrained_cfg" in read_json(folder / CONFIG)


def frame_weights(backbone: str) -> Path | None:
    """The embeddings of frames that stand in a folder of `fb3 pretrain`; None where it has read texts alone.

    Raises:
        Fb3Error: its config.json names frames, and the file is missing or broken.
    """
    folder, place = _folder(backbone), f"{KEY}={backbone}"
    if not (folder / CONFIG).is_file() or FRAME_WIDTH not in read_json(folder / CONFIG):
        return None
    if not (folder / FRAME_WEIGHTS).is_file():
        raise Fb3Error(f"{place}: {FRAME_WEIGHTS} is missing, and {CONFIG} names frames; copy the whole folder")
    _refuse(weights_problem, folder / FRAME_WEIGHTS, place)
    return folder / FRAME_WEIGHTS


def _refuse(look: Callable[[Path], str], path: Path, place: str) -> None:
    try:
        words = look(path)
    except OSError as error:
        words = f"cannot be read ({error.strerror or error})"
    if words:
        raise Fb3Error(f"{place}: {path.name} {words}")


def _folder(backbone: str) -> Path:
    try:
        return Path(backbone).expanduser()
    except RuntimeError:  # "~" of a user without a home directory
        return Path(backbone)


def _shards(folder: Path, index: str, place: str) -> list[str]:
    """The weight files that an index names; an Fb3Error where one is missing."""
    _refuse(placeholder_problem, folder / index, place)
    names = sorted(set(map(str, read_json(folder / index, {"weight_map": dict})["weight_map"].values())))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise Fb3Error(
            f"{place}: {index} names {len(names)} files of weights, and {missing[:3]} are missing; copy them too"
        )
    return names


def _check_sentencepiece(folder: Path, place: str) -> None:
    found = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not all(name.endswith(".model") for name in found):
        return
    for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
        try:
            importlib.import_module(module)
        except ImportError:
            raise Fb3Error(
                f"{place}: {found[0]} is read with the package {package}, which is not installed; pip install "
                f"{package}, or save {TOKENIZER} beside it where it is"
            ) from None


def unreachable() -> str:
    """The reason why the hub, or the proxy before it, cannot be asked; empty if it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "is not asked (HF_HUB_OFFLINE is set)"
    hub = place = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(hub.netloc):
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        with socket.create_connection(
            (place.hostname, place.port or (443 if place.scheme == "https" else 80)), _SECONDS
        ):
            return ""
    except OSError as error:
        return f"cannot be reached ({place.hostname}: {error.strerror or error})"
