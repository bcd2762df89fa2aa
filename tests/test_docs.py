"""README.md and docs/: the map names every station; links, paths and commands exist."""

import re

import pytest
import typer

from fb3.cli import app
from tests.conftest import ROOT
from tests.test_architecture import PACKAGE, STATIONS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page):
    return page.read_text(encoding="utf-8")


def commands_of(page):
    """Program, name and options of each command: those in code blocks and, in the README, in code spans too."""
    blocks = re.findall(r"^```sh\n(.*?)^```", read(page), re.S | re.M) + re.findall(r"^ {4}\S.*", read(page), re.M)
    spans = re.findall(r"`([^`\n]+)`", read(page)) if page.name == "README.md" else []
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + spans
    for line in lines:
        for program, name, rest in re.findall(r"(?:^|&&)\s*(fb3|python) (\S+)([^#&]*)", line):
            yield program, name, re.findall(r"(?<=\s)--[\w-]+", rest)


def test_the_map_has_every_station_with_its_place_in_the_order():
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", read(ROOT / "docs" / "contributing.md"), re.M)
    places = {name: int(place) for place, names in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", names)}
    assert places == {name: place for place, names in enumerate(STATIONS) for name in names}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(places)


@each_page
def test_relative_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        assert "://" in link or (page.parent / link.partition("#")[0]).exists(), link


@each_page
def test_paths_in_code_spans_exist(page):
    for span in re.findall(r"`([^`\n]+)`", read(page)):
        for path in re.findall(r"(?<![\w./:-])(?:fb3|tests|benchmarks|notebooks|wheels|docs|\.ci)/[\w./-]*[\w/]", span):
            assert (ROOT / path).exists(), path


@each_page
def test_commands_and_their_options_exist(page):
    for program, name, options in commands_of(page):
        if program == "fb3":
            assert name in COMMANDS, f"fb3 {name}"
            inner = [COMMANDS[name], *getattr(COMMANDS[name], "commands", {}).values()]
            known = {option for command in inner for each in command.params for option in each.opts}
        elif name.endswith(".py"):
            known = set(re.findall(r'"(--[\w-]+)"', read(ROOT / name)))
        else:
            continue  # python -m, -X, -c
        assert set(options) <= known | {"--help"}, f"{name} {options}"
