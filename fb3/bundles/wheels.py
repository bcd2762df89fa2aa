"""The wheels that the competition image lacks: resolved against its list, locked by hash, checked, fetched."""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from fb3.bundles.images import BACKENDS, Image, own_requirements, parse_requirements
from fb3.errors import Fb3Error
from fb3.system.disk_space import cannot_write, is_disk_full
from fb3.system.files import LARGEST, format_bytes, read_utf8, sha256

_SDISTS = (".tar.gz", ".zip", ".tar.bz2", ".egg")


def resolve(image: Image, requirements: Sequence[Requirement] | None = None) -> dict[str, str]:
    """Resolves the packages that fb3 needs and the image lacks, with their own requirements, to lock lines by name.

    A package that the image has in a version that will do is left out. The others come from the package index, for the
    image's Python and platform.

    Args:
        image: the recorded image.
        requirements: the requirements to resolve; None: fb3's own.

    Raises:
        Fb3Error: no network, no wheel for the image, or an image whose version of a package does not meet a
            requirement.
    """
    pins: dict[str, tuple[str, str]] = {}
    waiting = [(r, "fb3") for r in (own_requirements() if requirements is None else requirements)]
    while waiting:
        requirement, asker = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if not image.wants(requirement) or _in_image(image, requirement, asker):
            continue
        if name in pins:
            if not requirement.specifier.contains(pins[name][0], prereleases=True):
                raise Fb3Error(f"{image.name}: {asker} wants {requirement}, but {name} {pins[name][0]} is resolved")
            continue
        found = _ask_index(requirement, image)
        version, digest = found["metadata"]["version"], found["download_info"]["archive_info"]["hashes"]["sha256"]
        pins[name] = version, f"{name}=={version} --hash=sha256:{digest}"
        waiting += [(Requirement(text), f"{name} {version}") for text in found["metadata"].get("requires_dist", [])]
    return {name: line for name, (_, line) in sorted(pins.items())}


def lock_text(image: Image, backend: str | None = None) -> str:
    """The content of the image's lock file, or of its lock file for a backend.

    Raises:
        Fb3Error: see `resolve`; also for an unknown backend.
    """
    if backend and backend not in BACKENDS:
        raise Fb3Error(f"--backend {backend}: not known; there are {', '.join(BACKENDS)}")
    what = f"fb3 with predict.backend={backend}" if backend else "fb3"
    head = f"# What {what} needs beyond the image {image.name} (Python {image.python}). Written by `fb3 wheels-lock`."
    return "\n".join([head, *resolve(image, own_requirements(backend)).values()]) + "\n"


def _in_image(image: Image, requirement: Requirement, asker: str) -> bool:
    """Whether the image has a required package; refuses a version there that does not meet the requirement."""
    have = image.packages.get(canonicalize_name(requirement.name))
    if have is not None and not image.satisfies(requirement):
        raise Fb3Error(
            f"{image.name}: {asker} wants {requirement}, the image has {have}; a bundle may not replace what the image "
            "has, so take another version or another image"
        )
    return have is not None


def _ask_index(requirement: Requirement, image: Image) -> dict:
    """The entry of pip's installation report for a requirement's newest fitting wheel."""
    plain = f"{requirement.name}{requirement.specifier}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = ["install", "--dry-run", "--ignore-installed", "--target", folder, "--report", str(report)]
        if why := _pip([*arguments, "--no-deps", *_for_image(image), plain]):
            words = f"no wheel of {plain} for Python {image.short_python} on Linux ({why}); an sdist will not do where"
            raise _pip_error(Path(folder), why, f"{image.name}: {words} there is no network")
        return json.loads(report.read_text(encoding="utf-8"))["install"][0]


def _for_image(image: Image) -> list[str]:
    platforms = [argument for tag in image.platforms() for argument in ("--platform", tag)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", image.short_python, *platforms]


def _pip(arguments: list[str]) -> str:
    """Runs pip; returns the reason where it failed, else an empty text."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_NO_INPUT": "1"})
    if not done.returncode:
        return ""
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return " ".join(lines[:2]) or done.stderr.strip()[-300:]


def _pip_error(folder: Path, why: str, words: str) -> Fb3Error:
    """The error where pip failed: a full disk, if that is why, else `words`."""
    return cannot_write(folder, error) if is_disk_full(error := OSError(why)) else Fb3Error(words)


def fetch_wheels(lock: Path, folder: Path, image: Image) -> list[Path]:
    """The wheels that a lock file names, downloaded by hash where the folder lacks one.

    Args:
        lock: requirements with `--hash`.
        folder: the folder that keeps the wheels.
        image: the image on which they will be installed.

    Raises:
        Fb3Error: no network, or a download whose hash is not the lock's.
    """
    if any(digest not in _hashes(folder) for digest in locked(lock).values()):
        arguments = ["download", "--no-deps", "--require-hashes", "--requirement", str(lock), "--dest", str(folder)]
        if why := _pip([*arguments, *_for_image(image)]):
            words = f"pip could not fetch the wheels ({why}); give a folder that has them with --wheels, or pack none"
            raise _pip_error(folder, why, f"{lock}: {words} with --no-wheels: inference does not need them")
    return find_wheels(lock, folder, image)


def find_wheels(lock: Path, folder: Path, image: Image) -> list[Path]:
    """The wheels of a folder that a lock file names, checked against the image.

    Raises:
        Fb3Error: a wheel is missing or has another hash, or `check_wheels` refuses it.
    """
    if not folder.is_dir():
        raise Fb3Error(f"{folder}: no such folder")
    have = _hashes(folder)
    if absent := sorted(name for name, digest in locked(lock).items() if digest not in have):
        raise Fb3Error(
            f"{folder}: no wheel of {absent} with the hash that {lock.name} names; `pip download --no-deps "
            f"--require-hashes -r {lock}` fetches it"
        )
    wheels = sorted(have[digest] for digest in locked(lock).values())
    check_wheels(wheels, image)
    return wheels


def locked(lock: Path) -> dict[str, str]:
    """The SHA-256 of each package in a lock file, by canonical name.

    Raises:
        Fb3Error: the file cannot be read, or a line has no hash.
    """
    lines, out = read_utf8(lock).splitlines(), {}
    for line in lines:
        for requirement in parse_requirements([line], lock):
            digest = re.search(r"--hash=sha256:([0-9a-f]{64})", line)
            if digest is None:
                raise Fb3Error(f"{lock}: {requirement} has no --hash=sha256:…; `fb3 wheels-lock` writes it")
            out[canonicalize_name(requirement.name)] = digest[1]
    return out


def _hashes(folder: Path) -> dict[str, Path]:
    return {sha256(path): path for path in sorted(folder.glob("*.whl"))}


def check_wheels(wheels: Iterable[Path], image: Image) -> None:
    """Refuses wheels that would not install on the image, or would harm it.

    Raises:
        Fb3Error: an sdist; a wheel for another Python or platform; a wheel that would replace a package of the image; a
            requirement of a wheel, or of fb3, that neither the image nor another wheel meets.
    """
    carried: dict[str, str] = {}
    needed = [(r, "fb3") for r in own_requirements()]
    for path in wheels:
        name, version, requires = _inspect(path, image)
        carried[name] = version
        needed += [(r, path.name) for r in requires]
    for requirement, asker in needed:
        if not image.wants(requirement) or _in_image(image, requirement, asker):
            continue
        have = carried.get(canonicalize_name(requirement.name))
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            raise Fb3Error(
                f"{asker} wants {requirement}, which neither {image.name} nor the wheels have"
                f"{f' (they have {have})' if have else ''}; `fb3 wheels-lock` resolves the closure"
            )


def _inspect(path: Path, image: Image) -> tuple[str, str, list[Requirement]]:
    """Checks one wheel; returns its canonical name, version and requirements."""
    if path.name.endswith(_SDISTS):
        raise Fb3Error(f"{path}: an sdist, which must be built; there is no network for that. Take a wheel")
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise Fb3Error(f"{path}: no wheel ({error})") from None
    if not tags & image.tags():
        raise Fb3Error(
            f"{path}: made for {', '.join(sorted(map(str, tags)))}, {image.name} has Python {image.short_python} on "
            f"Linux x86_64 with glibc {image.glibc[0]}.{image.glibc[1]}"
        )
    if name in image.packages:
        raise Fb3Error(
            f"{path}: would replace the image's {name} {image.packages[name]} by {version}, and packages built on it "
            "may break; leave it out"
        )
    return name, str(version), _requirements_of(path)


def _requirements_of(wheel: Path) -> list[Requirement]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
            if archive.getinfo(inside).file_size > LARGEST:
                raise Fb3Error(
                    f"{wheel}: its METADATA has {format_bytes(archive.getinfo(inside).file_size)}; fetch it again"
                )
            metadata = HeaderParser().parsestr(archive.read(inside).decode("utf-8"))
    except Fb3Error:
        raise
    except Exception as error:  # zipfile raises many types: for a broken stream, a password, an unknown method
        raise Fb3Error(f"{wheel}: no whole wheel ({error or 'no METADATA in it'}); fetch it again") from None
    return parse_requirements(metadata.get_all("Requires-Dist") or [], wheel)
