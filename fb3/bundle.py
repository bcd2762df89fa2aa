"""The dataset folder ("bundle"), read: its manifest names every file with size and hash."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error
from fb3.files import read_json, sha256
from fb3.layout import MANIFEST, METADATA, RECIPE
from fb3.recipe import Recipe, load_recipe

FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A run in a bundle: its name, its folder, its recipe and its fold folders."""

    name: str
    path: Path
    recipe: Recipe
    folds: list[Path]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: dict[str, Any]

    def runs(self) -> Iterator[tuple[str, Path, list[Path]]]:
        """Name, folder and fold folders of each run, in the order in which they were packed."""
        for run in self.manifest["runs"]:
            path = self.path / "runs" / run["name"]
            yield run["name"], path, [path / f"fold{number}" for number in run["folds"]]

    def members(self) -> list[Member]:
        """The runs with their recipes."""
        return [Member(name, path, load_recipe(path / RECIPE), folds) for name, path, folds in self.runs()]

    def files_below(self, folder: Path) -> list[str]:
        """The names in the manifest of what lies in a folder."""
        start = folder.relative_to(self.path).as_posix() + "/"
        return [name for name in self.manifest["files"] if name.startswith(start)]

    def check(self, name: str) -> None:
        """Compares a file with the manifest.

        Raises:
            Fb3Error: it is missing or is not the one that was packed.
        """
        file, entry = self.path / name, self.manifest["files"][name]
        if not file.is_file():
            raise Fb3Error(f"{file}: missing from the bundle; upload it again")
        if file.stat().st_size != entry["size"]:
            raise Fb3Error(f"{file}: {file.stat().st_size} bytes, packed were {entry['size']}; upload it again")
        if sha256(file) != entry["sha256"]:
            raise Fb3Error(f"{file}: its hash is not the packed file's; it was changed or damaged, upload it again")

    def faults(self) -> Iterator[Fb3Error]:
        """What `check` has against each file."""
        for name in self.manifest["files"]:
            if name != METADATA:  # the user's to edit, and not mounted on Kaggle
                try:
                    self.check(name)
                except Fb3Error as error:
                    yield error

    def extra(self) -> list[str]:
        """Files that the manifest does not name, without those that Python writes when it imports the source."""
        there = [path.relative_to(self.path) for path in sorted(self.path.rglob("*")) if not path.is_dir()]
        known = {*self.manifest["files"], MANIFEST, METADATA}
        return [p.as_posix() for p in there if p.as_posix() not in known and "__pycache__" not in p.parts]


def read_bundle(path: str | Path) -> Bundle:
    """Reads the manifest only.

    Raises:
        Fb3Error: no bundle there, or one of another format.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise Fb3Error(f"{path}: no bundle (no {MANIFEST}); give the --out of build_dataset.py")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Fb3Error(f"{path / MANIFEST}: not a bundle's manifest of format {FORMAT}; build the bundle anew")
    return Bundle(path, manifest)


def verify_bundle(path: str | Path) -> Bundle:
    """Reads a bundle and checks every file's size and hash.

    Raises:
        Fb3Error: a file is missing or is not the one that was packed; names it.
    """
    bundle = read_bundle(path)
    for fault in bundle.faults():
        raise fault
    return bundle
