"""Names that Kaggle accepts for data sets, notebooks and files; Kaggle itself checks them only after the upload."""

import re
from collections.abc import Iterable
from typing import Any

from fb3.errors import Fb3Error

_LENGTHS = range(6, 51)  # characters of a data set's slug, and of its title
_OWNER = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_SLUG = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"


def dataset_metadata(id: str, title: str | None) -> dict[str, Any]:
    """The content of dataset-metadata.json; an Fb3Error where Kaggle would refuse the id or the title."""
    slug = check_reference(id, "--id")
    title = slug if title is None else title
    if title != " ".join(title.split()) or not title.isprintable():
        raise Fb3Error(f"--title {title!r}: want one line without spaces at its ends or two in a row")
    for what, text in (("--id: the slug", slug), ("--title", title)):
        if len(text) not in _LENGTHS:
            raise Fb3Error(f"{what} {text!r} has {len(text)} characters; Kaggle wants 6 to 50")
    return {"id": id, "title": title, "licenses": [{"name": "other"}]}


def check_reference(text: str, option: str) -> str:
    """Checks the name of a data set or a notebook, and returns its slug.

    Args:
        text: owner/slug.
        option: the command's option, for the error.

    Raises:
        Fb3Error: the name has another form.
    """
    owner, slash, slug = text.partition("/")
    if not slash or not re.fullmatch(_OWNER, owner):
        raise Fb3Error(f"{option} {text}: want owner/slug, the owner as in the address of your Kaggle profile")
    if not re.fullmatch(_SLUG, slug):
        want = "small letters, digits and hyphens, no hyphen at its ends"
        raise Fb3Error(f"{option} {text}: want owner/slug, the slug of {want}, such as {owner}/{default_slug(slug)}")
    return slug


def default_slug(name: str) -> str:
    """A slug made from any name, such as a folder's."""
    slug = "-".join(re.findall("[a-z0-9]+", name.lower()))
    return (slug if len(slug) in _LENGTHS else f"fb3-{slug or 'bundle'}-data")[:50].rstrip("-")


def check_file_names(names: Iterable[str]) -> None:
    """Refuses paths with characters that Kaggle refuses; the error names the first such path."""
    for name in names:
        if bad := re.search(r"[^A-Za-z0-9._+/ -]", name):
            raise Fb3Error(f"{name}: Kaggle refuses the character {bad[0]!r} in a file's name; pack the bundle anew")


def safe_file_name(name: str) -> str:
    """A name that Kaggle accepts for a file or folder: it refuses @ and &, and its client skips hidden files."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-_") or "run"
