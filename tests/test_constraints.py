"""constraints.txt: one exact version of what both README commands install, on every Python that fb3 supports."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def requirements(text):
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_direct_requirement_has_one_version_that_it_allows(python):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    direct = requirements((ROOT / "fb3" / "requirements.txt").read_text(encoding="utf-8"))
    direct += requirements(setup["options.extras_require"]["test"])
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = {}
    for pin in requirements((ROOT / "constraints.txt").read_text(encoding="utf-8")):
        if pin.marker is None or pin.marker.evaluate(here):
            assert pins.setdefault(canonicalize_name(pin.name), pin) is pin, f"{pin.name} stands there twice"
    for requirement in direct:
        (exact,) = pins[canonicalize_name(requirement.name)].specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(exact.version, prereleases=True), f"{requirement}: run .ci/constraints"


def test_both_readme_commands_use_them_with_the_torch_that_they_name():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```", readme, re.S | re.M)[:2]
    torch = re.search(r"^torch(==\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[0]
    for command in commands:
        assert command.startswith(f"pip install -c constraints.txt {torch} -e ")
