"""Competition images: their Python, glibc and packages, and the packages that fb3 needs."""

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name
from packaging.version import Version

from fb3.errors import Fb3Error, shortened
from fb3.system.files import read_utf8

RECORDED = Path(__file__).resolve().parents[2] / "wheels" / "images"
_OWN = Path(__file__).parents[1] / "requirements.txt"
# Requirements of predict.backend beyond fb3's own; setup.cfg names the same as extras.
BACKENDS = {"openvino": ("openvino>=2025.0",), "onnx": ("onnx>=1.17", "onnxruntime>=1.20")}
_OPTIONAL = ("lightgbm>=4", "pillow")  # a run may need them, and an image may have them
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*==\s*([^\s;#]+)")
_GLIBC = (2, 35)  # in Kaggle's images since 2023


@dataclass(frozen=True)
class Image:
    """A competition image, as a recorded list describes it."""

    name: str
    python: str  # the full version
    glibc: tuple[int, int]
    packages: dict[str, str]  # version by canonical name

    @property
    def short_python(self) -> str:
        """Major and minor version, such as 3.12."""
        return ".".join(self.python.split(".")[:2])

    def satisfies(self, requirement: Requirement) -> bool:
        """Whether the image meets a requirement; a version's local part such as +cu128 is ignored."""
        version = self.packages.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(Version(version).public, prereleases=True)

    def wants(self, requirement: Requirement) -> bool:
        """Whether a requirement's marker holds on the image."""
        return requirement.marker is None or requirement.marker.evaluate(
            {
                "python_version": self.short_python,
                "python_full_version": self.python,
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "os_name": "posix",
                "sys_platform": "linux",
                "platform_system": "Linux",
                "platform_machine": "x86_64",
                "extra": "",
            }
        )

    def platforms(self) -> list[str]:
        """Platform tags of wheels that run on the image, newest glibc first."""
        major, minor = self.glibc
        new = [f"manylinux_{major}_{n}_x86_64" for n in range(minor, 4, -1)]
        return [*new, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]

    def tags(self) -> frozenset[Tag]:
        """Tags of wheels that install on the image."""
        version = tuple(int(part) for part in self.short_python.split("."))
        interpreter = f"cp{version[0]}{version[1]}"
        own = cpython_tags(version, platforms=self.platforms())
        return frozenset([*own, *compatible_tags(version, interpreter, self.platforms())])


def read_image(path: str | Path, python: str | None = None) -> Image:
    """Reads a recorded list: `name==version` lines, with `# python 3.12.13` and `# glibc 2.35` on top.

    Args:
        path: the list; the output of `pip freeze` will do.
        python: the version of Python, for a list that does not name it.

    Raises:
        Fb3Error: the list is missing or empty, holds an invalid version, or names no Python.
    """
    path = Path(path)
    try:
        lines = read_utf8(path).splitlines()
    except Fb3Error as error:
        raise Fb3Error(f"{error}; `fb3 image-freeze` writes such a list") from None
    said = dict(re.findall(r"^#\s*(python|glibc)\s+(\d+(?:\.\d+)+)\s*$", "\n".join(lines), re.M))
    packages = {canonicalize_name(m[1]): m[2] for m in map(_PINNED.match, lines) if m}
    if not packages:
        raise Fb3Error(f"{path}: no line such as numpy==2.1.3 in it; `fb3 image-freeze` writes such a list")
    for name, version in packages.items():
        try:
            Version(version)
        except ValueError:  # InvalidVersion, or int's own for a number of thousands of digits
            raise Fb3Error(f"{path}: {name}=={version} is no version") from None
    python = python or said.get("python")
    if python is None:
        raise Fb3Error(f"{path}: does not say its Python; write a first line such as `# python 3.12.13`")
    if not re.fullmatch(r"3\.[0-9]{1,2}(\.[0-9]{1,3})?", python):  # `tags` counts down from it
        raise Fb3Error(f"{path}: Python {python} is no version; write a first line such as `# python 3.12.13`")
    glibc = said.get("glibc", ".".join(map(str, _GLIBC)))
    if not re.fullmatch(r"2\.[0-9]{1,2}(\.[0-9]{1,3})*", glibc):
        raise Fb3Error(f"{path}: glibc {glibc} is no version; write a line such as `# glibc 2.35`")
    major, minor = glibc.split(".")[:2]
    return Image(path.stem, python, (int(major), int(minor)), packages)


def find_image(name: str) -> Image:
    """Reads an image's list by path, or by name in the repository's wheels/images; an Fb3Error if there is none."""
    known = {path.stem: path for path in sorted(RECORDED.glob("*.txt"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise Fb3Error(f"image {name}: no such list; recorded are {list(known)}, and `fb3 image-freeze` writes one")
    return read_image(path)


def freeze_image() -> str:
    """The list of this interpreter's image: the installed packages among fb3's requirements and their own."""
    found = installed_closure([*own_requirements(), *map(Requirement, _OPTIONAL)])
    glibc = platform.libc_ver()[1] or ".".join(map(str, _GLIBC))
    head = [f"# python {platform.python_version()}", f"# glibc {glibc}"]
    return "\n".join([*head, *(f"{name}=={found[name]}" for name in sorted(found))]) + "\n"


def installed_closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Versions by name of the required packages and their own requirements, as far as they are installed here."""
    found: dict[str, str] = {}
    waiting = list(requirements)
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        needed = map(Requirement, distribution.requires or [])
        waiting += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def own_requirements(backend: str | None = None) -> list[Requirement]:
    """fb3's requirements to train and to infer, with the ones of a predict.backend."""
    own = parse_requirements(_OWN.read_text(encoding="utf-8").splitlines(), _OWN)
    return [*own, *map(Requirement, BACKENDS[backend] if backend else ())]


def parse_requirements(lines: Iterable[str], source: Path) -> list[Requirement]:
    """Parses lines of requirements; comments, options and empty lines are skipped.

    Raises:
        Fb3Error: a line of the file `source` is no requirement.
    """
    out = []
    for line in lines:
        text = re.split(r"\s+#|\s+--", line.strip())[0]
        if text and not text.startswith(("#", "-")):
            try:
                out.append(Requirement(text))
            except (InvalidRequirement, RecursionError) as error:
                # packaging's message quotes the whole line, however long, below the reason.
                reason = (str(error).splitlines() or [""])[0]
                raise Fb3Error(f"{source}: {shortened(text)!r} is no requirement ({shortened(reason)})") from None
    return out


def differing_versions(image: Image) -> dict[str, str]:
    """Describes, by name, the image's packages that this interpreter has in another version or not at all."""
    out = {}
    if not platform.python_version().startswith(image.short_python + "."):
        out["python"] = f"{platform.python_version()} (there {image.python})"
    for name, wanted in sorted(image.packages.items()):
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = "missing"
        if here != wanted:
            out[name] = f"{here} (there {wanted})"
    return out
