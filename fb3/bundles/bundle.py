"""Reading a bundle, the folder of a Kaggle data set whose manifest names every file with its size and hash."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fb3.ensembles.blend_forms import FORMS, Averaging, averaging_of
from fb3.ensembles.calibration import is_calibration
from fb3.errors import Fb3Error
from fb3.recipe import Recipe, load_recipe
from fb3.runs.run_folder import Member
from fb3.runs.shared_files import image_files, shared_files, shared_folder
from fb3.system.file_names import (
    ENCODER,
    FEATURES,
    FOLD_JSON,
    IMAGE_ENCODER,
    INT8,
    MANIFEST,
    METADATA,
    PREDICTIONS,
    RECIPE,
    SECOND,
    VECTORS,
    WEIGHTS,
    encoder_files,
    fold_folder,
)
from fb3.system.files import read_json, sha256
from fb3.targets.target import Target

FORMAT = 1
_LARGE = {WEIGHTS, VECTORS}  # files that take seconds to hash
SOURCE_ONLY = (  # ends a sentence about a bundle
    "holds fb3's source and wheels and no trained run: notebooks/train.ipynb trains with it; to predict, give the "
    "bundle that came out of the training, or one of `python build_dataset.py RUN`"
)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: dict[str, Any]

    def runs(self) -> Iterator[tuple[str, Path, list[Path]]]:
        """Each run's name, folder and fold folders, in the order in which the runs were packed."""
        for run in self.manifest["runs"]:
            path = self.path / "runs" / run["name"]
            yield run["name"], path, [fold_folder(path, number) for number in run["folds"]]

    def members(self) -> list[Member]:
        """The runs with their recipes; an Fb3Error where there is no run, or a recipe cannot be read."""
        self.check_trained()
        weights = self.weights()
        return [
            Member(name, path, load_recipe(path / RECIPE), folds, weights[name]) for name, path, folds in self.runs()
        ]

    def weights(self) -> dict[str, dict[str, float] | None]:
        """Each run's weights by column, by the run's name; none where all weigh the same."""
        return {run["name"]: run.get("weights") for run in self.manifest["runs"]}

    def averaging(self, target: Target) -> Averaging:
        """The way from the runs' predictions of a target to the submission's values."""
        members = len(self.manifest["runs"]) + len(self.manifest.get(PREDICTIONS, []))
        return averaging_of(self.manifest, target.columns, target.exclusive, members)

    def weighs(self, columns: Iterable[str]) -> bool:
        """Whether the runs weigh alike, or have weights for these columns."""
        return all(set(of_run) == set(columns) for of_run in self.weights().values() if of_run is not None)

    def unweighed(self) -> "Bundle":
        """The bundle without an ensemble's weights and whatever belongs to them."""
        kept = {
            key: value for key, value in self.manifest.items() if key not in {"blended", "calibration", PREDICTIONS}
        }
        runs = [{key: value for key, value in run.items() if key != "weights"} for run in self.manifest["runs"]]
        return Bundle(self.path, kept | {"runs": runs})

    def check_trained(self) -> None:
        """Refuses a bundle of `--source-only`: it holds no run, so it cannot predict."""
        if not self.manifest["runs"]:
            raise Fb3Error(f"{self.path}: {SOURCE_ONLY}")

    def check_fold(self, folder: Path) -> None:
        """Compares a fold's files with the manifest, see `check`, except its int8 scales, which are optional.

        The large files that an estimator's folds share are compared here, because the first submission waits for none.
        """
        self.check_below(folder, [FOLD_JSON, WEIGHTS], besides=INT8)
        self.check_below(folder.parent / FEATURES, [], _LARGE.__contains__)

    def check_shared(self, run: Path, recipe: Recipe) -> None:
        """Compares the small files that all folds of a run share with the manifest: configs, tokenizers, recipes."""
        folder, stitched = run / shared_folder(recipe), (run / ENCODER / SECOND).is_dir()
        names = [*shared_files(run, recipe), *(encoder_files(True) if stitched else [])]
        self.check_below(folder, names, lambda name: name not in _LARGE)

    def check_image_encoder(self, run: Path, recipe: Recipe) -> None:
        """Compares the image encoder that a run's pictures need with the manifest; others need none."""
        if images := image_files(run, recipe):
            self.check_below(self.path / IMAGE_ENCODER, [file.name for file in images.values()])

    def check_below(
        self, folder: Path, wanted: Iterable[str], taken: Callable[[str], bool] = lambda name: True, besides: str = ""
    ) -> None:
        """Compares the files of a folder with the manifest.

        Args:
            folder: a folder in the bundle.
            wanted: names of its files that the manifest must hold, because they will be read.
            taken: takes a file's name, and says whether it is compared.
            besides: name of a file that its reader checks.

        Raises:
            Fb3Error: see `check`.
        """
        start = folder.relative_to(self.path).as_posix() + "/"
        below = [name for name in self.manifest["files"] if name.startswith(start) and name != start + besides]
        for name in dict.fromkeys([*below, *(start + name for name in wanted)]):
            if taken(name.rpartition("/")[2]):
                self.check(name)

    def check(self, name: str) -> None:
        """Compares a file with the manifest; an Fb3Error where it is missing, changed, or outside the bundle."""
        entry = self.manifest["files"].get(name)
        if not _inside(name) or not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            what = f"{name!r} in it is missing, leads out of the bundle, or lacks size or sha256"
            raise Fb3Error(f"{self.path / MANIFEST}: {what}; build the bundle anew")
        file = self.path / name
        if not file.is_file():
            raise Fb3Error(f"{file}: missing from the bundle; upload it again")
        if file.stat().st_size != entry["size"]:
            raise Fb3Error(f"{file}: {file.stat().st_size} bytes, packed were {entry['size']}; upload it again")
        if sha256(file) != entry["sha256"]:
            raise Fb3Error(f"{file}: its hash is not the packed file's; it was changed or damaged, upload it again")

    def faults(self) -> Iterator[Fb3Error]:
        """The error of `check` for each bad file, and one for each link that leads out of the bundle."""
        root = self.path.resolve()
        for name in self.manifest["files"]:
            if name == METADATA:  # users edit it, and Kaggle does not mount it
                continue
            try:
                self.check(name)
            except Fb3Error as error:
                yield error
                continue
            if not (self.path / name).resolve().is_relative_to(root):
                yield Fb3Error(f"{self.path / name}: a link out of the bundle; put the file itself there")

    def extra(self) -> list[str]:
        """Files that the manifest does not name, except the byte code that Python writes beside the source."""
        found = [path.relative_to(self.path) for path in sorted(self.path.rglob("*")) if not path.is_dir()]
        known = {*self.manifest["files"], MANIFEST, METADATA}
        return [p.as_posix() for p in found if p.as_posix() not in known and "__pycache__" not in p.parts]


def read_bundle(path: str | Path) -> Bundle:
    """Reads a bundle's manifest; files are compared with it later, before they are used.

    Raises:
        Fb3Error: the folder is no bundle, or one of another format.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise Fb3Error(f"{path}: no bundle (no {MANIFEST}); give the --out of build_dataset.py")
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise Fb3Error(f"{path / MANIFEST}: not a bundle's manifest of format {FORMAT}; build the bundle anew")
    if not isinstance(manifest.get("files"), dict) or not _are_runs(manifest.get("runs")):
        raise Fb3Error(
            f"{path / MANIFEST}: want files by their names, and runs, each with the name of a folder of its own and "
            "the numbers of its folds, and weights for all of them or for none; build the bundle anew"
        )
    if not _are_predictions(manifest.get(PREDICTIONS, []), manifest):
        raise Fb3Error(
            f"{path / MANIFEST}: {PREDICTIONS}: want a packed file and weights for each; build the bundle anew"
        )
    columns = next((run["weights"] for run in manifest["runs"] if "weights" in run), {})
    if "calibration" in manifest and not is_calibration(manifest["calibration"], columns):
        raise Fb3Error(
            f"{path / MANIFEST}: calibration: want a slope above 0 and a shift for each column that has weights; build "
            "the bundle anew"
        )
    if manifest.get("blended", "values") not in FORMS:
        raise Fb3Error(f"{path / MANIFEST}: blended: want one of {', '.join(FORMS)}; build the bundle anew")
    return Bundle(path, manifest)


def _inside(name: str) -> bool:
    """Whether a name in the manifest is a plain relative path, such as runs/a/recipe.yaml."""
    plain = not set(name) & ({"\0", "\\", ":"} if os.name == "nt" else {"\0"})
    return plain and all(part not in {"", ".", ".."} for part in name.split("/"))


def _are_runs(runs: Any) -> bool:
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        return False
    names, folds = [run.get("name") for run in runs], [run.get("folds") for run in runs]
    if not all(isinstance(name, str) and "/" not in name and _inside(name) for name in names):
        return False
    weights = [run["weights"] for run in runs if "weights" in run]
    if weights and not (len(weights) == len(runs) and all(_are_weights(each, weights[0]) for each in weights)):
        return False
    numbers = all(isinstance(each, list) and all(type(n) is int and 0 <= n < 10**6 for n in each) for each in folds)
    return numbers and len(set(names)) == len(names) and all(len(set(each)) == len(each) for each in folds)


def _are_predictions(found: Any, manifest: dict[str, Any]) -> bool:
    """Whether each file of predictions is packed, and has weights as the runs have."""
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return False
    first = next((run.get("weights") for run in manifest["runs"]), None)
    if not all(isinstance(each.get("file"), str) for each in found):
        return False
    return all(each["file"] in manifest["files"] and _are_weights(each.get("weights"), first) for each in found)


def _are_weights(weights: Any, first: Any) -> bool:
    """Whether a run's weights are numbers from 0 to 1, for the same columns as the first run's."""
    if not isinstance(weights, dict) or not isinstance(first, dict) or weights.keys() != first.keys():
        return False
    return all(type(each) in (int, float) and 0 <= each <= 1 + 1e-6 for each in weights.values())


def verify_bundle(path: str | Path) -> Bundle:
    """Reads a bundle and checks every file's size and hash.

    Raises:
        Fb3Error: names the first file that is missing, is not the packed one, or is a link out of the bundle.
    """
    bundle = read_bundle(path)
    for fault in bundle.faults():
        raise fault
    return bundle
