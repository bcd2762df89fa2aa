"""Rehearsal: the inference notebook run as the competition will run it, on its public files and on odd hidden rows."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fb3.bundles.bundle import verify_bundle
from fb3.bundles.images import Image, differing_versions
from fb3.bundles.tolerance import tolerance
from fb3.data.tables import read_table
from fb3.errors import Fb3Error
from fb3.rehearsal.hidden_rows import invented_files, public_files, public_paths, write_hidden_test
from fb3.rehearsal.notebooks import find_notebook
from fb3.rehearsal.report import PUBLIC, RehearsalReport, pass_name, projection
from fb3.rehearsal.sandbox import importable, namespace_command, run_in_sandbox
from fb3.runs.run_folder import Member, reading_recipe
from fb3.submission.form import check_same_ids, submitted_columns
from fb3.submission.inference import packed_decision
from fb3.submission.submission_file import check_frame
from fb3.system.devices import pick_device, pick_devices
from fb3.system.disk_space import raises_disk_full
from fb3.system.files import read_json
from fb3.system.kaggle import COMMIT_VARIABLES, MOUNTS, RERUN_VARIABLES
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.targets.decisions import Decision

_MOST_DIFFERENT = 0.3  # share of equal essays that may have different decided cells
_FEW = 40  # rows in the old mount layout, enough to see that it works


@raises_disk_full("keep")
def rehearse(
    bundle: str | Path, data: str | Path, image: Image, *, rows: int = 2600, keep: str | Path | None = None
) -> RehearsalReport:
    """Runs notebooks/inference.ipynb on a bundle as the competition would.

    It runs first on the public test.csv and sample_submission.csv, as when the notebook is saved, then on hidden rows
    of their form. The network is cut; the inputs are read-only and mounted as Kaggle mounts them, in the new layout and
    in the old one; the working folder is empty; Kaggle's variables are set; a module that neither the bundle nor the
    image has cannot be imported. Where the system allows no namespaces, sockets are blocked inside the process only,
    and the report says so.

    Args:
        bundle: the dataset folder.
        data: the competition's folder: train.csv, whose essays make the hidden rows, test.csv and
            sample_submission.csv; without these two they are invented from the recipe, and the report says so.
        image: the competition machine's packages.
        rows: hidden rows; FB3 has about 2,600.
        keep: a new folder that keeps inputs and outputs; None: a temporary one.

    Raises:
        Fb3Error: the bundle or the data cannot be read. Errors of the rehearsal itself stand in the report.
    """
    packed, data = verify_bundle(bundle), Path(data)
    members = packed.members()
    recipe = reading_recipe(members)
    decision = packed_decision(packed, recipe, strict=True)
    files = recipe.data.files
    read_table(
        data / files.train, [], key="data.files.train"
    )  # an error in it is raised before the first run, which may take long
    if keep and Path(keep).is_dir() and any(Path(keep).iterdir()):
        raise Fb3Error(f"{keep}: not empty; choose another --keep")
    report = RehearsalReport(versions=differing_versions(image))
    notebook, modules, prefix = find_notebook("inference"), importable(image), namespace_command()
    if prefix is None:
        report.notes.append(
            "weaker: no namespaces here, so sockets are blocked inside the process only and inputs can be written"
        )

    def run(name: str, places: tuple[str, str], variables: Mapping[str, str], copies: Mapping[str, str]) -> None:
        competition = folder / f"competition-{name}"
        inputs = dict(zip(places, (packed.path, competition), strict=True))
        result = run_in_sandbox(notebook, inputs, places[0], folder / name, modules, prefix, variables)
        _judge(name, result, members[0], decision, competition, folder / name / "working", copies, report)

    with nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="fb3-rehearsal-") as place:
        folder = Path(place)
        if public := public_files(data, files):
            say("rehearsal, the public files")
            for path in public_paths(data, recipe.data):
                _copy(path, folder / f"competition-{PUBLIC}" / path.relative_to(data))
            run(PUBLIC, MOUNTS["new"], COMMIT_VARIABLES, {})
        else:
            absent = " or no ".join(files.markers()[::-1])
            report.notes.append(
                f"{data} has no {absent}: hidden rows were invented from the recipe, and "
                "nothing shows whether its columns are the competition's"
            )
            public = invented_files(recipe, data)
        if report.failures:
            report.notes.append("hidden rows were left out: the run on the public files must pass first")
            return report
        for name, places in MOUNTS.items():
            count = rows if name == "new" else min(rows, _FEW)
            say(f"rehearsal, {pass_name(name)}, {count} rows")
            copies = write_hidden_test(data, recipe, public, folder / f"competition-{name}", count)
            run(name, places, RERUN_VARIABLES | ({} if name == "new" else _two_devices()), copies)
    report.projection = projection(report.layouts.get("new"), members)
    if report.projection.get("share_t4", 0) > 1:
        report.failures.append("by its FLOPs it would exceed the limit on a T4: take fewer folds or smaller models")
    return report


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, to)


def _two_devices() -> dict[str, str]:
    """Lets two processes share the essays, as the competition's two GPUs do."""
    return {} if len(pick_devices()) > 1 else {"FB3_DEVICE": f"{pick_device()},{pick_device()}"}


def _judge(
    name: str,
    result: dict[str, Any],
    member: Member,
    decision: Decision | None,
    competition: Path,
    working: Path,
    copies: Mapping[str, str],
    report: RehearsalReport,
) -> None:
    """Adds the outcome of one run to the report."""
    where = pass_name(name)
    if result["error"]:
        refused = f"; not importable there: {', '.join(result['refused'])}" if result["refused"] else ""
        report.failures.append(f"{where}: {result['error']}{refused}")
        if not (working / "submission.report.json").is_file():  # it failed before a first submission was written
            return
    try:
        summary = read_json(working / "submission.report.json", {"folds": list, "phases": dict, "flops": dict})
        if summary["error"] and not result["error"]:
            report.failures.append(f"{where}: inference failed ({summary['error']}); the training means were kept")
        report.failures += [f"{where}: {warning}" for warning in summary.get("warnings", [])]
        for fold in summary["folds"]:
            if fold["status"] != "used":
                report.failures.append(f"{where}: {fold['fold']} {fold['status']}: {fold['reason']}")
        files = member.recipe.data.files
        sample, written = competition / (files.sample or files.test), working / "submission.csv"
        check_submission(member, sample, written, copies, decision)
        if name == PUBLIC and files.sample:
            tables = [read_table(file, []).set_index(member.recipe.data.id_column) for file in (sample, written)]
            report.notes += fractions_for_whole_numbers(*tables, sample.name)
    except (Fb3Error, KeyError) as error:
        report.failures.append(f"{where}: {error}")
        return
    report.layouts[name] = {key: summary[key] for key in ("rows", "phases", "peak_memory", "flops")}
    report.layouts[name] |= {key: result[key] for key in ("seconds", "refused")}


def fractions_for_whole_numbers(sample: pd.DataFrame, written: pd.DataFrame, name: str) -> list[str]:
    """A note on columns that are whole numbers in the sample submission and fractions in the one that was written.

    It is no fault: many samples hold 0 where the competition takes fractions.
    """
    whole, own = ({c for c in t if t[c].str.fullmatch("[+-]?[0-9]+").all()} for t in (sample, written))
    columns = [column for column in sample.columns if column in whole and column in written and column not in own]
    mend = "where the competition wants whole numbers, train with metric=qwk or decision={kind: rounding}"
    return [f"{name} holds whole numbers in {columns}, the submission fractions; {mend}"] if columns else []


def check_submission(
    member: Member, sample: Path, path: Path, copies: Mapping[str, str], decision: Decision | None = None
) -> None:
    """Checks a submission's ids, columns and range, as the competition does, and that equal essays have equal scores.

    Args:
        member: a run of the bundle, whose recipe and out-of-fold predictions give the scores' scale.
        sample: the sample submission.
        path: the submission.
        copies: for each id whose texts are a copy of an earlier row's, that row's id.
        decision: the bundle's fitted decision, where it has one.

    Raises:
        Fb3Error: the submission is not valid.
    """
    settings, target = member.recipe.data, target_of(member.recipe, decision)
    wanted = read_table(sample, [settings.id_column])
    columns = list(target.forms()[0])
    if settings.files.sample:
        columns = submitted_columns(wanted, target, sample.name)
    if not settings.files.header:
        named = path.with_suffix(".named.csv")
        named.write_bytes(f"{','.join([settings.id_column, *columns])}\n".encode() + path.read_bytes())
        path = named
    written = read_table(path, [settings.id_column, *columns])
    check_same_ids(written[settings.id_column], wanted[settings.id_column], path, sample.name)
    if written[settings.id_column].tolist() != wanted[settings.id_column].tolist():
        raise Fb3Error(f"{path}: its rows are in another order than the sample submission's")
    check_frame(written, target)
    if not copies:
        return
    cells = written.set_index(settings.id_column)[columns]
    values = target.values(cells)
    apart = np.abs(target.values(cells.loc[list(copies)]) - target.values(cells.loc[list(copies.values())]))
    # Copies in different batches are rounded differently, most in bf16. Decided cells are equal, or, where a prediction
    # lies beside a cut, another label: few of them.
    decided = np.array_equal(values, np.rint(values))
    different = (apart > 0).any(1).mean() > _MOST_DIFFERENT if decided else False
    if different or (not decided and tolerance(member, "bf16").exceeded(apart, float(values.std(0).mean()))):
        worst = int(apart.max(1).argmax())
        one = list(copies)[worst]
        raise Fb3Error(
            f"{path}: {one} and {copies[one]} are the same essay, their scores differ by {apart[worst].max():.3g}; "
            "are rows in another order than their ids?"
        )
