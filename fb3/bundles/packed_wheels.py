"""Chooses the wheels and lock files of a bundle: fb3's own for every image, and the ones of its runs' backends."""

from collections.abc import Iterator
from pathlib import Path

from fb3.bundles.images import BACKENDS, RECORDED, read_image
from fb3.bundles.wheels import fetch_wheels, find_wheels
from fb3.ensembles.ensemble_file import packed_runs
from fb3.recipe import load_recipe
from fb3.system.file_names import RECIPE
from fb3.system.progress import say

WHEELS = RECORDED.parent


def packed_wheels(runs: list[Path], folder: Path | None, without: bool) -> Iterator[Path]:
    """All wheels and lock files, from a folder or downloaded by hash; nothing is read before the iterator starts."""
    wheels = [] if without else wheels_for_all_images(folder)
    for backend in backends_of(runs):
        wheels += wheels_of_backend(backend, folder, without)
    yield from {path.name: path for path in wheels}.values()


def backends_of(runs: list[Path]) -> list[str]:
    """The libraries that the runs' recipes name in predict.backend; `write_bundle` refuses folders that are no run."""
    recipes = [load_recipe(run / RECIPE) for run in packed_runs(runs) if (run / RECIPE).is_file()]
    return sorted({recipe.predict.backend for recipe in recipes} & BACKENDS.keys())


def wheels_of_backend(backend: str, folder: Path | None, without: bool) -> list[Path]:
    """Wheels and lock files of a backend; none, with a message, where the repository has no locks for it."""
    if without or not all((WHEELS / f"{path.stem}-{backend}.lock").is_file() for path in RECORDED.glob("*.txt")):
        why = "--no-wheels" if without else f"no lock of it; `fb3 wheels-lock IMAGE --backend {backend}` writes one"
        say(f"predict.backend={backend}: its wheels are not packed ({why}); where they are missing, torch computes")
        return []
    return wheels_for_all_images(folder, f"-{backend}")


def wheels_for_all_images(folder: Path | None, suffix: str = "") -> list[Path]:
    """Wheels and lock files for every recorded image; `suffix` ends the lock files' stems, such as -openvino."""
    files = {}
    for listed in sorted(RECORDED.glob("*.txt")):
        image, lock = read_image(listed), WHEELS / f"{listed.stem}{suffix}.lock"
        found = find_wheels(lock, folder, image) if folder else fetch_wheels(lock, WHEELS, image)
        files |= {path.name: path for path in (*found, lock)}
    return list(files.values())
