"""Reads ensemble.json: the run folders to pack, and their weights."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fb3.ensembles.blend_forms import FORMS
from fb3.ensembles.calibration import is_calibration
from fb3.errors import Fb3Error
from fb3.system.file_names import DECISION, ENSEMBLE, OOF, RECIPE
from fb3.system.files import read_json, sha256

Weights = dict[str, float]  # by column


def packed_runs(paths: Sequence[Path], with_tests: bool = False) -> dict[Path, Weights | None]:
    """The run folders that paths mean, in the order of inference; an ensemble's members with their weights.

    With `with_tests`, members whose predictions for the test essays are given need no model, and are left out here.

    Runs of an ensemble stand in the order of what they add for their time, so that a deadline costs the least useful.

    Raises:
        Fb3Error: a run twice, an ensemble beside other paths, or one that cannot be packed: a member is a CSV, was
            trained on since, or has moved.
    """
    ensembles = [path for path in paths if (path / ENSEMBLE).is_file()]
    if not ensembles:
        places = [path.resolve() for path in paths]
        if twice := [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]:
            raise Fb3Error(f"{twice[0]}: is given twice, and a bundle holds a run once; leave one out")
        return dict.fromkeys(paths)
    if len(paths) > 1:
        raise Fb3Error(f"{ensembles[0]}: an ensemble is packed alone; make one of all members with `fb3 ensemble`")
    file = ensembles[0] / ENSEMBLE
    content = read_json(file, {"blended": str, "members": list})
    members = [member for member in content["members"] if any(_weights(member, file).values())]
    members = [member for member in members if not (with_tests and "test" in member)]
    for member in members:
        check_run(member_path(member["path"], ensembles[0]), member.get("sha256"), file)
    members.sort(key=lambda member: member.get("order", -(member.get("adds") or 0.0)))  # older files hold no order
    return {member_path(member["path"], ensembles[0]): _weights(member, file) for member in members}


def packed_tests(paths: Sequence[Path]) -> dict[Path, Weights]:
    """The files of an ensemble's predictions for test essays, with their members' weights.

    Raises:
        Fb3Error: a file has moved, or is another one by now.
    """
    found = {}
    for ensemble in (path for path in paths if (path / ENSEMBLE).is_file()):
        for member in read_json(ensemble / ENSEMBLE, {"members": list})["members"]:
            weights = _weights(member, ensemble / ENSEMBLE)
            if "test" not in member or not any(weights.values()):
                continue
            file = member_path(str(member["test"]), ensemble)
            if not file.is_file() or sha256(file) != member.get("test_sha256"):
                raise Fb3Error(f"{file}: not the file that was given; run `fb3 ensemble` again")
            found[file] = weights
    return found


def stored_path(path: Path, ensemble: Path) -> str:
    """A member's path for ensemble.json: absolute as it was given, or from the ensemble's folder.

    So both may move together, and the ensemble can be used from any folder.
    """
    return str(path) if path.is_absolute() else os.path.relpath(path, os.path.realpath(ensemble))


def member_path(stored: str, ensemble: Path) -> Path:
    """The place that ensemble.json names: from the ensemble's folder, or from the working directory in older files."""
    below = Path(os.path.normpath(Path(os.path.realpath(ensemble)) / stored))
    return below if below.exists() else Path(stored)


def packed_decision(paths: Sequence[Path]) -> dict[str, Any] | None:
    """The content of an ensemble's decision.json; none where the paths are runs, or it has none."""
    files = [path / DECISION for path in paths if (path / ENSEMBLE).is_file() and (path / DECISION).is_file()]
    return read_json(files[0]) if files else None


def packed_blend(paths: Sequence[Path]) -> dict[str, Any]:
    """The form in which an ensemble blends, and its slope and shift, as ensemble.json and a manifest hold them.

    Empty where the paths are runs.
    """
    for file in (path / ENSEMBLE for path in paths if (path / ENSEMBLE).is_file()):
        content = read_json(file, {"blended": str, "members": list})
        if content["blended"] not in FORMS:
            form, known = content["blended"], ", ".join(FORMS)
            raise Fb3Error(f"{file}: blended: {form!r} is none of {known}; run `fb3 ensemble` again")
        line = content.get("calibration")
        if line is not None and not is_calibration(line, _weights(content["members"][0], file)):
            raise Fb3Error(f"{file}: calibration: want a slope above 0 and a shift a column; run `fb3 ensemble` again")
        return {"blended": content["blended"], **({} if line is None else {"calibration": line})}
    return {}


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
            "`fb3 ensemble` without it, or give its predictions for the test essays too, as OOF.csv=TEST.csv"
        )
    if not (run / RECIPE).is_file() or not (run / OOF).is_file():
        raise Fb3Error(f"{file}: {run} is no run folder from here; move it back, or run `fb3 ensemble` again")
    if sha256(run / OOF) != digest:
        raise Fb3Error(f"{file}: {run} was weighed with another {OOF}; run `fb3 ensemble` again")
