"""The state of a folder's git repository, asked with a time limit."""

import os
import subprocess
from pathlib import Path
from typing import Any

_SECONDS = 10.0
# A hook of another repository sets these variables, and git would look there.
_FOREIGN = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"}
# No lock on the index, which another git command may hold; no prompt; messages in English, which are read below.
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_STATUS = ("status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=untracked")


def git_state(folder: Path, tracked: str | None = None) -> dict[str, Any] | None:
    """Commit, branch and whether tracked files differ from the commit. Never raises.

    Args:
        folder: a folder of the repository; in a submodule, the submodule's state is given.
        tracked: a file in the folder that the repository must track to count as the folder's own: a package installed
            into a virtual environment may lie inside somebody else's repository.

    Returns:
        commit (None before the first), branch (None where a commit is checked out), changes. None where there is no
        git or no repository. {"unknown": reason} where git refuses ("dubious ownership") or does not answer in time.
    """
    try:
        if tracked and _git(folder, "ls-files", "--error-unmatch", "--", tracked).returncode == 1:
            return None
        done = _git(folder, *_STATUS)
    except subprocess.TimeoutExpired:
        return {"unknown": f"git did not answer within {_SECONDS:.0f} s"}
    except OSError:  # no git
        return None
    if done.returncode:
        reason = " ".join(done.stderr.split("\n\n")[0].split())
        return None if "not a git repository" in reason else {"unknown": reason[:300]}
    lines = done.stdout.splitlines()
    head = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("# branch."))
    commit, branch = head.get("branch.oid"), head.get("branch.head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "changes": any(not line.startswith("#") for line in lines),
    }


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs git without the file-system monitor that a repository's configuration may start."""
    return subprocess.run(
        ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_SECONDS,
        env={**{name: value for name, value in os.environ.items() if name not in _FOREIGN}, **_QUIET},
    )
