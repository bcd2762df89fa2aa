"""Images and wheels: what is missing is resolved, what would break an image is refused, what is packed installs."""

import os
import shutil
import subprocess
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fb3.bundles import wheels
from fb3.bundles.images import (
    BACKENDS,
    RECORDED,
    find_image,
    read_image,
)
from fb3.bundles.wheels import check_wheels, fetch_wheels, find_wheels, resolve
from fb3.errors import Fb3Error
from fb3.system.files import sha256
from tests.conftest import ROOT

PYTHONS = {"py312": "3.12", "py313": "3.13"}


@pytest.fixture
def image():
    return read_image(RECORDED / "py312.txt")


def wheel(folder, name, requires=(), packages=("thing",)):
    """A real, if empty, wheel."""
    folder.mkdir(exist_ok=True)
    distribution, version = name.split("-")[:2]
    with zipfile.ZipFile(folder / name, "w") as archive:
        info = f"{distribution}-{version}.dist-info"
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
        archive.writestr(f"{info}/METADATA", "\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder / name


@pytest.fixture
def stratification(tmp_path):
    return wheel(tmp_path / "w", "iterative_stratification-0.1.9-py3-none-any.whl", ["numpy", "scikit-learn"])


def test_good_wheels_pass(stratification, image):
    check_wheels([stratification], image)


@pytest.mark.parametrize(
    ("name", "requires", "words"),
    [
        ("thing-1.0.tar.gz", (), "an sdist"),
        ("thing-1.0.whl", (), "no wheel"),
        ("thing-1.0-cp311-cp311-manylinux_2_17_x86_64.whl", (), "made for cp311.*has Python 3.12"),
        ("thing-1.0-cp312-cp312-win_amd64.whl", (), "made for cp312-cp312-win_amd64"),
        ("thing-1.0-cp312-cp312-manylinux_2_39_x86_64.whl", (), "glibc 2.35"),
        ("torch-2.13.0-py3-none-any.whl", (), "would replace the image's torch 2.10.0 by 2.13.0"),
        ("numpy-2.4.0-cp312-cp312-manylinux_2_28_x86_64.whl", (), "would replace the image's numpy"),
        ("transformers-5.9.0-py3-none-any.whl", (), "would replace the image's transformers"),
        ("thing-1.0-py3-none-any.whl", ("numpy>=2.4",), "wants numpy>=2.4, the image has 2.0.2"),
        ("thing-1.0-py3-none-any.whl", ("absent>=1",), "wants absent>=1, which neither"),
    ],
)
def test_a_wheel_that_would_harm_is_refused_with_its_reason(tmp_path, stratification, image, name, requires, words):
    if name.count("-") > 1:
        other = wheel(tmp_path / "w", name, requires)
    else:
        other = tmp_path / "w" / name
        other.write_bytes(b"")
    with pytest.raises(Fb3Error, match=words) as error:
        check_wheels([stratification, other], image)
    assert name in str(error.value)


def test_wheels_of_the_other_tags_pass(tmp_path, stratification, image):
    for tag in ("cp312-cp312-manylinux_2_35_x86_64", "cp312-abi3-manylinux2014_x86_64", "py2.py3-none-any"):
        check_wheels([stratification, wheel(tmp_path / "w", f"thing-1.0-{tag}.whl")], image)


def test_a_marker_of_another_python_asks_nothing(tmp_path, stratification, image):
    more = wheel(tmp_path / "w", "thing-1.0-py3-none-any.whl", ['absent; python_version < "3.10"', 'x; extra == "y"'])
    check_wheels([stratification, more], image)


def test_an_incomplete_closure_is_refused(image):
    with pytest.raises(Fb3Error, match="fb3 wants iterative-stratification"):
        check_wheels([], image)


def test_a_broken_wheel_is_named(tmp_path, image):
    broken = tmp_path / "thing-1.0-py3-none-any.whl"
    broken.write_bytes(b"PK")
    with pytest.raises(Fb3Error, match="no whole wheel"):
        check_wheels([broken], image)


def test_wheels_are_taken_by_hash(tmp_path, stratification, image):
    lock = tmp_path / "py312.lock"
    lock.write_text(f"# head\niterative-stratification==0.1.9 --hash=sha256:{sha256(stratification)}\n")
    assert find_wheels(lock, stratification.parent, image) == [stratification]
    assert fetch_wheels(lock, stratification.parent, image) == [stratification], "nothing is fetched that is there"
    with stratification.open("ab") as file:
        file.write(b"x")
    with pytest.raises(Fb3Error, match=r"no wheel of .'iterative-stratification'. with the hash"):
        find_wheels(lock, stratification.parent, image)
    lock.write_text("iterative-stratification==0.1.9\n")
    with pytest.raises(Fb3Error, match=r"has no --hash"):
        find_wheels(lock, stratification.parent, image)


def test_resolving_asks_only_for_what_the_image_lacks(image, monkeypatch):
    asked = []

    def index(requirement, image):
        asked.append(requirement.name)
        requires = {"a": ["b>=1", "numpy"], "b": []}[requirement.name]
        found = {"metadata": {"version": "1.5", "requires_dist": requires}}
        return {**found, "download_info": {"archive_info": {"hashes": {"sha256": "0" * 64}}}}

    monkeypatch.setattr(wheels, "_ask_index", index)
    closure = resolve(image, [Requirement("a"), Requirement("torch>=2")])
    assert asked == ["a", "b"]
    assert closure["b"] == f"b==1.5 --hash=sha256:{'0' * 64}"
    with pytest.raises(Fb3Error, match=r"fb3 wants torch>=99, the image has 2\.10"):
        resolve(image, [Requirement("torch>=99")])
    with pytest.raises(Fb3Error, match=r"fb3 wants b<1, but b 1\.5 is resolved"):
        resolve(image, [Requirement("b"), Requirement("b<1")])


def interpreter(version):
    """A real interpreter of a version, or none."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


@pytest.mark.parametrize("name", PYTHONS)
def test_the_wheels_install_without_network_into_an_empty_target(name, tmp_path, without_network):
    python = interpreter(PYTHONS[name])
    if python is None:
        pytest.skip(f"no Python {PYTHONS[name]} here")
    lock = ROOT / "wheels" / f"{name}.lock"
    try:
        found = fetch_wheels(lock, tmp_path, find_image(name))
    except Fb3Error as error:
        pytest.skip(str(error))
    target = tmp_path / "target"
    command = [python, "-m", "pip", "install", "--no-index", "--no-deps", "--require-hashes", "--find-links"]
    command += [tmp_path, "-r", lock, "--target", target]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run([*without_network, *command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (target / "iterstrat" / "ml_stratifiers.py").is_file()
    assert found
    with found[0].open("ab") as file:
        file.write(b"x")
    command[-1] = tmp_path / "other"
    done = subprocess.run([*without_network, *command], capture_output=True, text=True, env=env)
    assert done.returncode != 0
    assert "HASH" in done.stderr.upper()


def test_the_extras_are_the_backends_requirements_and_openvino_is_locked_for_all_images():
    extras = ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for backend, wanted in BACKENDS.items():
        assert tuple(extras["options.extras_require"][backend].split()) == wanted
    for name in PYTHONS:
        lock = wheels.locked(ROOT / "wheels" / f"{name}-openvino.lock")
        assert lock.items() >= wheels.locked(ROOT / "wheels" / f"{name}.lock").items()
        assert "openvino" in lock
    with pytest.raises(Fb3Error, match="there are openvino, onnx"):
        wheels.lock_text(find_image("py312"), "tensorrt")
