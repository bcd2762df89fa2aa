"""Files with pictures, by id: npz of uint8 frames, zips and folders of images. One picture is read at a time."""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from fb3.data.frames.frame_files import array_header, stretches
from fb3.errors import Fb3Error

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_FORMS = "want x.npz of ids, offsets and uint8 frames (N, H, W, 3), or a zip or folder of {id}.jpg or {id}/NAME.jpg"
_MORE_BITS = ("I", "F")  # how Pillow's names begin for pixels of 16 and 32 bits
Place = int | str  # a picture in its file: its number in an npz, else its name


class PictureFile(Protocol):
    """A file or folder with the pictures of some items, whose places stand in the pictures' order."""

    path: Path
    items: Mapping[str, Sequence[Place]]

    def open(self, place: Place) -> Image.Image:
        """A picture, decoded when it is first used; any error but an Fb3Error says that this one picture is broken."""

    def content(self, place: Place) -> bytes:
        """A picture as it is stored, from the first byte of its file on; an npz's becomes a PNG."""

    def digest(self) -> str:
        """A hash that another content, order or id changes; no picture is read for it."""


class Picture(NamedTuple):
    """The place of a picture."""

    file: PictureFile
    place: Place

    def read(self) -> Image.Image:
        """The picture, not decoded yet."""
        return self.file.open(self.place)

    def __str__(self) -> str:
        place = f"frames[{self.place}]" if isinstance(self.place, int) else self.place
        return f"{self.file.path}: {place}"


def pictures_of(file: PictureFile, identifier: str) -> list[Picture]:
    """The pictures of an item, in their order."""
    return [Picture(file, place) for place in file.items[identifier]]


def as_rgb(picture: Image.Image) -> Image.Image:
    """Decodes a picture to RGB of 8 bits: grey becomes three equal channels, a palette its colours, alpha is dropped.

    Raises:
        ValueError: it has more bits, whose scale is not known. Pillow's own errors for a broken picture are of many
            types.
    """
    if picture.mode.startswith(_MORE_BITS):
        raise ValueError(f"its pixels are of mode {picture.mode}; save it with 8 bits a channel")
    return picture.convert("RGB")


def open_picture_files(paths: Sequence[Path]) -> list[PictureFile]:
    """Opens files with pictures.

    Raises:
        Fb3Error: one is missing, broken or of another form, or two have pictures of one item; names them.
    """
    files, seen = [_open(path) for path in paths], dict[str, Path]()
    for file in files:
        for identifier in file.items:
            if identifier in seen:
                raise Fb3Error(f"{seen[identifier]} and {file.path}: both have pictures of {identifier}; leave one out")
            seen[identifier] = file.path
    return files


def _open(path: Path) -> PictureFile:
    with _in_words(path):
        if path.is_dir():
            return _Folder(path)
        return _Npz(path) if path.suffix == ".npz" else _Zip(path)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise Fb3Error(f"{path}: no file with pictures ({reason}); {_FORMS}") from error


class _Npz:
    """ids (N,), offsets (N + 1,) and frames (pictures of all, H, W, 3), which are unpacked as they are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.archive = path, zipfile.ZipFile(path)
        with np.load(path, allow_pickle=False) as arrays:
            ids, offsets = arrays["ids"].astype(str), arrays["offsets"].astype(np.int64)
        self.stream = self.archive.open("frames.npy")
        (count, *self.shape), columns_first, dtype = array_header(self.stream)
        if dtype != np.uint8 or len(self.shape) != 3 or self.shape[2] != 3 or columns_first:
            raise ValueError(f"frames are {dtype} of shape {(count, *self.shape)}")
        if not count:
            raise ValueError("it holds no picture")
        self.start, self.size = self.stream.tell(), int(np.prod(self.shape))
        self.items = {each: range(*ends) for each, ends in stretches(ids, offsets, count, "frames").items()}

    def open(self, place: int) -> Image.Image:
        with _in_words(self.path):
            self.stream.seek(self.start + place * self.size)
            pixels = np.frombuffer(self.stream.read(self.size), np.uint8)
            return Image.fromarray(pixels.reshape(self.shape))

    def content(self, place: int) -> bytes:
        made = io.BytesIO()
        self.open(place).save(made, "png")
        return made.getvalue()

    def digest(self) -> str:
        return _zip_digest(self.archive)


class _Zip:
    """Images in a zip."""

    def __init__(self, path: Path) -> None:
        self.path, self.archive = path, zipfile.ZipFile(path)
        self.items = _by_item(self.archive.namelist())

    def open(self, place: str) -> Image.Image:
        return _image(self.content(place))

    def content(self, place: str) -> bytes:
        return self.archive.read(place)

    def digest(self) -> str:
        return _zip_digest(self.archive)


class _Folder:
    """Images in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items = _by_item(each.relative_to(path).as_posix() for each in path.rglob("*"))

    def open(self, place: str) -> Image.Image:
        return _image(self.content(place))

    def content(self, place: str) -> bytes:
        return (self.path / place).read_bytes()

    def digest(self) -> str:
        found = ((name, (self.path / name).stat()) for names in self.items.values() for name in names)
        return _digest(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found)


def _image(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError("no picture by its first bytes" if content else "it is empty") from None


def _zip_digest(archive: zipfile.ZipFile) -> str:
    return _digest(f"{each.filename} {each.file_size} {each.CRC}" for each in archive.infolist())


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _by_item(names: Iterable[str]) -> dict[str, list[str]]:
    """The pictures of each item, both in natural order; names are relative paths, of other files too."""
    pictures = sorted(filter(_is_picture, names), key=_natural)
    if not pictures:
        raise ValueError(f"it holds no picture ({', '.join(sorted(_SUFFIXES))})")
    depth = _shared_depth(pictures)
    items, alone = dict[str, list[str]](), set[str]()
    for name in pictures:
        *folder, file = PurePosixPath(name).parts[depth:]
        if len(folder) > 1:
            raise ValueError(f"{name} lies too deep")
        identifier = folder[0] if folder else PurePosixPath(file).stem
        others = items.setdefault(identifier, [])
        if others and (not folder or identifier in alone or name == others[-1]):
            raise ValueError(f"{others[-1]} and {name} are both of {identifier}")
        if not folder:
            alone.add(identifier)
        others.append(name)
    return items


def _shared_depth(names: Sequence[str]) -> int:
    """The number of folders around all items: one where all pictures, or all folders of them, lie in one, else none.

    Several pictures in one folder are of several items: competitions pack {id}.jpg that way, and none has one item.
    """
    parts = [PurePosixPath(name).parts for name in names]
    deep = {len(each) for each in parts}
    return int(len({each[0] for each in parts}) == 1 and (deep == {3} or (deep == {2} and len(parts) > 1)))


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _SUFFIXES and not hidden


def _natural(name: str) -> tuple[list[int | str], str]:
    """A key by which 2.jpg stands before 10.jpg."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split("([0-9]+)", name))], name


def write_pictures(path: Path, items: Mapping[str, Sequence[bytes]]) -> None:
    """Writes the pictures of items, each the content of an image file, in the form that the path's name says.

    An npz cannot hold a broken picture, nor several sizes: such items are an error of numpy's or Pillow's.
    """
    if path.suffix == ".npz":
        frames = [np.asarray(as_rgb(_image(each))) for pictures in items.values() for each in pictures]
        offsets = np.cumsum([0, *map(len, items.values())])
        np.savez(path, ids=np.array([*items], str), offsets=offsets, frames=np.stack(frames))
        return
    named = {f"{each}/{n}.png": picture for each, pictures in items.items() for n, picture in enumerate(pictures)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, picture in named.items():
                archive.writestr(name, picture)
        return
    for name, picture in named.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture)
