"""What environment.json says of git, and that it never stops a training."""

import os
import shutil
import subprocess
import time

import pytest

from fb3.system import git
from fb3.system.git import git_state

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git here")
WHO = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always", "-c", "commit.gpgsign=false"]


def run(folder, *arguments):
    done = subprocess.run(["git", *WHO, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """With one commit on the branch work."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))  # whatever repository the tests' folder is in
    folder = tmp_path / "repository"
    folder.mkdir()
    run(folder, "init", "-q", "-b", "work")
    (folder / "file").write_text("1")
    run(folder, "add", ".")
    run(folder, "commit", "-qm", "one")
    return folder


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_commit_branch_and_changes(repository):
    commit = run(repository, "rev-parse", "HEAD")
    assert git_state(repository) == {"commit": commit, "branch": "work", "changes": False}
    (repository / "new").write_text("untracked files are no changes")
    assert not git_state(repository)["changes"]
    (repository / "file").write_text("2")
    assert git_state(repository) == {"commit": commit, "branch": "work", "changes": True}
    run(repository, "checkout", "-q", "--detach")
    assert git_state(repository)["branch"] is None


def test_another_repositorys_variables_do_not_count(repository, tmp_path, monkeypatch):
    commit = run(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_state(repository)["commit"] == commit


def test_without_commit_repository_or_git(repository, tmp_path, monkeypatch):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert git_state(fresh) is None
    assert git_state(tmp_path / "nowhere") is None or "unknown" in git_state(tmp_path / "nowhere")
    run(fresh, "init", "-q", "-b", "first")
    assert git_state(fresh) == {"commit": None, "branch": "first", "changes": False}
    monkeypatch.setenv("PATH", str(fresh))
    assert git_state(repository) is None


def test_a_submodule_is_its_own(repository, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    run(outer, "init", "-q")
    run(outer, "submodule", "add", "-q", str(repository), "inner")
    run(outer, "commit", "-qm", "two")
    assert git_state(outer / "inner")["commit"] == run(repository, "rev-parse", "HEAD")
    assert git_state(outer)["commit"] == run(outer, "rev-parse", "HEAD")
    (outer / "inner" / "file").write_text("2")
    assert git_state(outer)["changes"]


def test_what_a_repository_does_not_hold_is_not_its(repository):
    """An environment in somebody's repository."""
    (repository / ".gitignore").write_text("venv")
    (repository / "venv").mkdir()
    (repository / "venv" / "version.py").write_text("")
    assert git_state(repository / "venv", tracked="version.py") is None
    assert git_state(repository, tracked="file")["branch"] == "work"


def test_a_git_that_refuses_or_hangs_is_told_and_not_waited_for(repository, tmp_path, monkeypatch):
    bin = tmp_path / "bin"
    executable(bin / "git", "echo \"fatal: detected dubious ownership in repository at '/x'\" >&2; exit 128")
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    assert git_state(repository, tracked="file") == {
        "unknown": "fatal: detected dubious ownership in repository at '/x'"
    }
    executable(bin / "git", "sleep 30 & wait")  # and its child, which holds the pipe
    monkeypatch.setattr(git, "_SECONDS", 0.2)
    started = time.monotonic()
    assert "did not answer" in git_state(repository)["unknown"]
    assert time.monotonic() - started < 10
