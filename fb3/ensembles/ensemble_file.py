"""Reads ensemble.json: the run folders to pack, and their weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fb3.errors import Fb3Error
from fb3.system.file_names import DECISION, ENSEMBLE, OOF, RECIPE
from fb3.system.files import read_json, sha256

Weights = dict[str, float]  # by column


def packed_runs(paths: Sequence[Path]) -> dict[Path, Weights | None]:
    """The run folders that paths mean, in the order of inference; an ensemble's members with their weights.

    Runs of an ensemble stand in the order of what they add, so that a deadline costs the least useful ones.

    Raises:
        Fb3Error: an ensemble beside other paths, or one that cannot be packed: a member is a CSV, was trained on since,
            or has moved; ranks are blended.
    """
    ensembles = [path for path in paths if (path / ENSEMBLE).is_file()]
    if not ensembles:
        return dict.fromkeys(paths)
    if len(paths) > 1:
        raise Fb3Error(f"{ensembles[0]}: an ensemble is packed alone; make one of all members with `fb3 ensemble`")
    file = ensembles[0] / ENSEMBLE
    content = read_json(file, {"blended": str, "members": list})
    if content["blended"] != "values":
        raise Fb3Error(f"{file}: blends ranks, and inference averages values; pack its runs, which then weigh the same")
    members = [member for member in content["members"] if any(_weights(member, file).values())]
    for member in members:
        check_run(Path(member["path"]), member.get("sha256"), file)
    members.sort(key=lambda member: -(member.get("adds") or 0.0))
    return {Path(member["path"]): _weights(member, file) for member in members}


def packed_decision(paths: Sequence[Path]) -> dict[str, Any] | None:
    """The content of an ensemble's decision.json; none where the paths are runs, or it has none."""
    files = [path / DECISION for path in paths if (path / ENSEMBLE).is_file() and (path / DECISION).is_file()]
    return read_json(files[0]) if files else None


def _weights(member: Any, file: Path) -> Weights:
    weights = member.get("weights") if isinstance(member, Mapping) and isinstance(member.get("path"), str) else None
    if not isinstance(weights, dict) or not all(type(each) in (int, float) and each >= 0 for each in weights.values()):
        raise Fb3Error(f"{file}: members: want a path and weights, not negative, for each; run `fb3 ensemble` again")
    return weights


def check_run(run: Path, digest: object, file: Path) -> None:
    """Refuses a member that is no run folder, or whose oof.csv is not the one that was weighed."""
    if run.is_file():
        raise Fb3Error(
            f"{file}: {run} has weight and is a file of predictions, so there is no model to predict with; run "
            "`fb3 ensemble` without it"
        )
    if not (run / RECIPE).is_file() or not (run / OOF).is_file():
        raise Fb3Error(f"{file}: {run} is no run folder from here; move it back, or run `fb3 ensemble` again")
    if sha256(run / OOF) != digest:
        raise Fb3Error(f"{file}: {run} was weighed with another {OOF}; run `fb3 ensemble` again")
