"""Rehearsal: the inference notebook run as the competition will run it, on its public files and on odd hidden rows."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fb3.bundles.bundle import Bundle, verify_bundle
from fb3.bundles.images import Image, differing_versions, installed_closure
from fb3.bundles.tolerance import tolerance
from fb3.data.tables import read_table
from fb3.errors import Fb3Error
from fb3.rehearsal.hidden_rows import invented_files, public_files, write_hidden_test
from fb3.rehearsal.notebooks import find_notebook
from fb3.rehearsal.report import PUBLIC, Rehearsal, pass_name, projection
from fb3.runs.run_folder import Member
from fb3.submission.submission_file import check_form, check_values
from fb3.system.devices import pick_device, pick_devices
from fb3.system.disk_space import raises_disk_full
from fb3.system.files import read_json, write_json
from fb3.system.kaggle import COMMIT_VARIABLES, COMPETITION_MARKER, MOUNTS, RERUN_VARIABLES, TEST
from fb3.system.progress import say

_GLANCE = 40  # rows in the second layout, which is only glanced at
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FB3_DEVICE")


@raises_disk_full("keep")
def rehearse(
    bundle: str | Path, data: str | Path, image: Image, *, rows: int = 2600, keep: str | Path | None = None
) -> Rehearsal:
    """Runs notebooks/inference.ipynb on a bundle as the competition would.

    First on the public test.csv and sample_submission.csv, as when the notebook is saved, then on hidden rows of their
    form. The network is cut, the inputs are read-only and mounted as Kaggle mounts them, in the new layout and in the
    old one, the working folder is empty, Kaggle's variables are set, and what neither the bundle nor the image has
    cannot be imported. Where the system allows no namespaces, sockets are blocked inside the process only, and the
    report says so.

    Args:
        bundle: the dataset folder.
        data: the competition's folder: train.csv, whose essays make the hidden rows, test.csv and
            sample_submission.csv; without these two they are invented from the recipe, and the report says so.
        image: what the competition machine has.
        rows: hidden rows; FB3 has about 2,600.
        keep: a new folder that keeps inputs and outputs; none: a temporary one.

    Raises:
        Fb3Error: the bundle or the data cannot be read. What fails in the rehearsal itself stands in the report.
    """
    packed, data = verify_bundle(bundle), Path(data)
    members = packed.members()
    read_table(data / "train.csv", [])  # before the first run, which may take long
    report = Rehearsal()
    tools = _tools(report)
    report.versions = differing_versions(image)
    stage = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="fb3-rehearsal-"))
    if stage.is_dir() and any(stage.iterdir()):
        raise Fb3Error(f"{stage}: not empty; choose another --keep")

    def run(name: str, places: tuple[str, str], variables: Mapping[str, str], copies: Mapping[str, str]) -> None:
        competition = stage / f"competition-{name}"
        result = _run(packed, competition, stage / name, places, image, tools, variables)
        _judge(name, result, members[0], competition, stage / name / "working", copies, report)

    try:
        if public := public_files(data):
            say("rehearsal, the public files")
            (stage / f"competition-{PUBLIC}").mkdir(parents=True)
            for name in (TEST, COMPETITION_MARKER):
                shutil.copyfile(data / name, stage / f"competition-{PUBLIC}" / name)
            run(PUBLIC, MOUNTS["new"], COMMIT_VARIABLES, {})
        else:
            report.notes.append(
                f"{data} has no {TEST} or no {COMPETITION_MARKER}: hidden rows were invented from the recipe, and "
                "nothing shows whether its columns are the competition's"
            )
            public = invented_files(members[0].recipe)
        if report.failures:
            report.notes.append("hidden rows were left out: the run on the public files must pass first")
            return report
        for name, places in MOUNTS.items():
            count = rows if name == "new" else min(rows, _GLANCE)
            say(f"rehearsal, {pass_name(name)}, {count} rows")
            copies = write_hidden_test(data, members[0].recipe, public, stage / f"competition-{name}", count)
            run(name, places, RERUN_VARIABLES | ({} if name == "new" else _two_devices()), copies)
    finally:
        if keep is None:
            shutil.rmtree(stage, ignore_errors=True)
    report.projection = projection(report.layouts.get("new"), members)
    if report.projection.get("share_t4", 0) > 1:
        report.failures.append("by its FLOPs it would exceed the limit on a T4: take fewer folds or smaller models")
    return report


def _tools(report: Rehearsal) -> list[str] | None:
    """The command prefix that gives a process network and mounts of its own; none where the system forbids it."""
    for prefix in (["unshare", "-rmn"], ["unshare", "-mn"]):
        try:
            with tempfile.TemporaryDirectory() as folder:
                program = (
                    "import sys; from fb3.rehearsal.inside_sandbox import bind_read_only; bind_read_only(*sys.argv[1:])"
                )
                command = [*prefix, sys.executable, "-c", program, folder, folder]
                if not subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2]).returncode:
                    return prefix
        except OSError:
            continue
    report.notes.append(
        "weaker: no namespaces here, so sockets are blocked inside the process only and inputs can be written"
    )
    return None


def _two_devices() -> dict[str, str]:
    """Lets the second run share the essays between two processes, as the competition's two GPUs will."""
    return {} if len(pick_devices()) > 1 else {"FB3_DEVICE": f"{pick_device()},{pick_device()}"}


def _run(
    packed: Bundle,
    competition: Path,
    stage: Path,
    places: tuple[str, str],
    image: Image,
    tools: list[str] | None,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """One notebook run; its result with the guard's log and what the stage printed."""
    inputs, working, guard, home = (stage / name for name in ("input", "working", "guard", "home"))
    for folder in (working, guard, home):
        folder.mkdir(parents=True)
    mounts = []
    for source, place in zip((packed.path.resolve(), competition.resolve()), places, strict=True):
        target = inputs / place
        if tools:
            target.mkdir(parents=True)
            mounts.append([str(source), str(target.resolve())])
        else:
            shutil.copytree(source, target)
    log = guard / "refused.txt"
    shutil.copyfile(Path(__file__).with_name("import_guard.py"), guard / "sitecustomize.py")
    settings = {
        "modules": importable(image),
        "bundle": str((inputs / places[0]).resolve()),
        "log": str(log.resolve()),
        "sockets": tools is None,
    }
    write_json(settings, guard / "settings.json")
    env = {
        "PYTHONPATH": str(guard.resolve()),
        "FB3_GUARD": str((guard / "settings.json").resolve()),
        "FB3_INPUT": str(inputs.resolve()),
        "HOME": str(home.resolve()),
        **variables,
    }
    spec = {
        "notebook": str(find_notebook("inference")),
        "working": str(working.resolve()),
        "env": env,
        "keep": list(_KEPT),
        "mounts": mounts,
        "result": str((stage / "result.json").resolve()),
    }
    write_json(spec, stage / "spec.json")
    command = [
        *(tools or []),
        sys.executable,
        "-m",
        "fb3.rehearsal.inside_sandbox",
        str((stage / "spec.json").resolve()),
    ]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        return {"error": f"the stage itself failed: {done.stderr.strip()[-1500:]}", "seconds": 0.0}
    refused = sorted(set(log.read_text(encoding="utf-8").split())) if log.is_file() else []
    return {**read_json(stage / "result.json"), "refused": refused}


def importable(image: Image) -> list[str]:
    """Top-level modules of what the image has, and of the notebook kernel, as far as they are installed here.

    What those need is allowed too: in the versions of this machine it may be something else than in the image's.
    """
    allowed = set(installed_closure(map(Requirement, [*image.packages, "ipykernel", "nbclient", "pip", "setuptools"])))
    modules = importlib.metadata.packages_distributions()
    return sorted(m for m, owners in modules.items() if any(canonicalize_name(owner) in allowed for owner in owners))


def _judge(
    name: str,
    result: dict[str, Any],
    member: Member,
    competition: Path,
    working: Path,
    copies: Mapping[str, str],
    report: Rehearsal,
) -> None:
    """Puts what one run gave into the report."""
    where = pass_name(name)
    if result["error"]:
        refused = f"; not importable there: {', '.join(result['refused'])}" if result.get("refused") else ""
        report.failures.append(f"{where}: {result['error']}{refused}")
        if not (working / "submission.report.json").is_file():  # it broke off before a first file stood
            return
    try:
        summary = read_json(working / "submission.report.json", {"folds": list, "phases": dict, "flops": dict})
        if summary["error"] and not result["error"]:
            report.failures.append(f"{where}: inference failed ({summary['error']}); the training means were kept")
        report.failures += [f"{where}: {warning}" for warning in summary.get("warnings", [])]
        for fold in summary["folds"]:
            if fold["status"] != "used":
                report.failures.append(f"{where}: {fold['fold']} {fold['status']}: {fold['reason']}")
        check_submission(member, competition / COMPETITION_MARKER, working / "submission.csv", copies)
    except (Fb3Error, KeyError) as error:
        report.failures.append(f"{where}: {error}")
        return
    report.layouts[name] = {
        "rows": summary["rows"],
        "phases": summary["phases"],
        "seconds": result["seconds"],
        "peak_memory": summary["peak_memory"],
        "refused": result.get("refused", []),
        "flops": summary["flops"],
    }


def check_submission(member: Member, sample: Path, path: Path, copies: Mapping[str, str]) -> None:
    """As the competition will: ids, columns, range; and equal scores for equal essays.

    Args:
        member: its recipe and out-of-fold predictions say how large the scores are.
        sample: the sample submission.
        path: the submission.
        copies: for ids whose texts are there a second time, the id of the first.

    Raises:
        Fb3Error: what is wrong with it.
    """
    settings, task = member.recipe.data, member.recipe.task
    columns = list(settings.target_columns)
    written = read_table(path, [settings.id_column, *columns])
    wanted = read_table(sample, [settings.id_column])
    check_form(written[settings.id_column], wanted, columns, str(path))
    if written[settings.id_column].tolist() != wanted[settings.id_column].tolist():
        raise Fb3Error(f"{path}: its rows are in another order than the sample submission's")
    try:
        written[columns] = written[columns].astype(float)
    except ValueError as error:
        raise Fb3Error(f"{path}: {error}") from None
    check_values(written[[settings.id_column, *columns]], task.minimum, task.maximum)
    values = written.set_index(settings.id_column)[columns]
    if not copies:
        return
    apart = np.abs(values.loc[list(copies)].to_numpy() - values.loc[list(copies.values())].to_numpy())
    # Other batches round otherwise, in bf16 most.
    if tolerance(member, "bf16").exceeded(apart, float(values.std(ddof=0).mean())):
        worst = int(apart.max(1).argmax())
        one = list(copies)[worst]
        raise Fb3Error(
            f"{path}: {one} and {copies[one]} are the same essay, their scores differ by {apart[worst].max():.3g}; "
            "are rows in another order than their ids?"
        )
