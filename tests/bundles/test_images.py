"""The recorded images: what a list says, and what is no list."""

import os
import sys
from pathlib import Path

import pytest

from fb3.bundles import wheels
from fb3.bundles.images import (
    Image,
    differing_versions,
    find_image,
    freeze_image,
    own_requirements,
    read_image,
)
from fb3.errors import Fb3Error
from tests.conftest import ROOT

IMAGES = Path(os.environ.get("FB3_IMAGES", ROOT.parent / "shared" / "images"))
PYTHONS = {"py312": "3.12", "py313": "3.13"}


@pytest.mark.parametrize("name", PYTHONS)
def test_the_recorded_images_say_their_python_and_lack_only_what_their_lock_has(name):
    image = find_image(name)
    assert image.short_python == PYTHONS[name]
    assert image.glibc == (2, 35)
    pictures = {"pillow", "torchvision", "timm"}
    assert {"lightgbm", *pictures} <= {*image.packages}, "a run may need them; a rehearsal imports what is listed"
    missing = {r.name for r in own_requirements() if not image.satisfies(r)}
    locked = wheels.locked(ROOT / "wheels" / f"{name}.lock")
    assert missing == set(locked) == {"iterative-stratification"}


@pytest.mark.parametrize("name", ["colab-20260514-gpu", "colab-20260819-gpu"])
def test_a_whole_image_list_reads_and_agrees_with_the_recorded_one(name):
    path = IMAGES / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    whole = read_image(path, python="3.12.13")
    recorded = find_image("py312" if "0514" in name else "py313")
    assert recorded.packages.items() <= whole.packages.items()
    assert len(whole.packages) > 500


def test_freezing_gives_a_list_that_reads(tmp_path):
    (tmp_path / "here.txt").write_text(freeze_image())
    here = read_image(tmp_path / "here.txt")
    assert here.short_python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert {"torch", "numpy", "transformers", "iterative-stratification"} <= set(here.packages)
    assert differing_versions(here) == {}
    assert "numpy" in differing_versions(Image("other", here.python, (2, 35), {"numpy": "1.0"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line such as"),
        ("numpy==2.1.3\n", "does not say its Python"),
        ("# python 3.12.1\nnumpy==x.y\n", "numpy==x.y is no version"),
    ],
)
def test_a_bad_image_list_is_named(tmp_path, text, words):
    (tmp_path / "i.txt").write_text(text)
    with pytest.raises(Fb3Error, match=words):
        read_image(tmp_path / "i.txt")
    with pytest.raises(Fb3Error, match="recorded are"):
        find_image("py27")
