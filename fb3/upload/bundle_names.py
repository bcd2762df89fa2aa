"""Names on Kaggle that a notebook is pushed with, from the command's options or from the bundle."""

from pathlib import Path

from fb3.bundles.bundle import read_bundle
from fb3.errors import Fb3Error
from fb3.recipe.sources import competition_slug
from fb3.upload.dataset import check_limits


def dataset_name(bundle: Path | None, given: str | None) -> str:
    """The data set's name, owner/slug: the one given, else the bundle's; an Fb3Error where neither is there."""
    if given is None and bundle is None:
        raise Fb3Error("--dataset OWNER/SLUG is missing; or give --bundle DIR, whose dataset-metadata.json names it")
    return given or check_limits(bundle)["id"]


def competition_name(bundle: Path | None, given: str | None) -> str:
    """The competition's name on Kaggle: the one given, which may be fb3's own, else the bundle's.

    Raises:
        Fb3Error: neither is there, or they differ.
    """
    if given is None and bundle is None:
        raise Fb3Error("--competition NAME is missing; or give --bundle DIR, whose recipes name it")
    packed = read_bundle(bundle).manifest.get("competition") if bundle else None
    if given is None and packed is None:
        raise Fb3Error(f"{bundle}: names no competition, because its recipes do not; give --competition NAME")
    slug = competition_slug(given) if given else packed
    if packed and slug != packed:
        raise Fb3Error(f"{bundle}: was made for {packed}, --competition says {slug}; leave one of them out")
    return slug
