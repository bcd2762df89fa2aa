"""The second level's commands as a user types them."""

import pytest
from typer.testing import CliRunner

from fb3.cli import app
from fb3.errors import Fb3Error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["ensemble", "a", "b"], "--out ENSEMBLE is missing"), (["ensemble", "a", "--out", "e"], "two members or more")],
)
def test_what_a_command_cannot_do_without_is_named(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, Fb3Error)
    assert words in str(error)
